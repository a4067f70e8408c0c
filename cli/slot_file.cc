#include "slot_file.h"

#include <cstring>
#include <optional>
#include <string>

namespace kvt::cli {
namespace {

// llama.h
constexpr uint32_t kSessionMagic = 0x6767736e, kSessionVersion = 11;
constexpr uint32_t kSequenceMagic = 0x67677371, kSequenceVersion = 4;

constexpr int32_t kTypeF16 = 1, kMostTypes = 64;  // ggml_type
// What no file exceeds; larger numbers mean that these bytes are something else.
constexpr uint32_t kMostStreams = 256, kMostSequences = 256, kMostLayers = 1024;
constexpr uint64_t kMostRowBytes = uint64_t{1} << 20;

class Reader {
 public:
  explicit Reader(std::span<const uint8_t> bytes) : bytes_(bytes) {}
  size_t at() const { return at_; }
  size_t left() const { return bytes_.size() - at_; }
  bool skip(uint64_t n) {
    if (n > left()) return false;
    at_ += static_cast<size_t>(n);
    return true;
  }
  template <typename T>
  std::optional<T> take() {
    T value;
    const size_t at = at_;
    if (!skip(sizeof value)) return std::nullopt;
    std::memcpy(&value, bytes_.data() + at, sizeof value);
    return value;
  }

 private:
  std::span<const uint8_t> bytes_;
  size_t at_ = 0;
};

// Keys or values of one layer. False: these bytes are something else.
bool read_layer(Reader* in, uint32_t n_cells, std::vector<SlotPart>* rows) {
  const auto type = in->take<int32_t>();
  const auto row_bytes = in->take<uint64_t>();
  if (!type || !row_bytes || *type < 0 || *type >= kMostTypes || *row_bytes == 0 || *row_bytes > kMostRowBytes) return false;
  const size_t begin = in->at();
  if (!in->skip(*row_bytes * n_cells)) return false;
  if (*type == kTypeF16 && *row_bytes % 2 == 0) rows->push_back({begin, in->at() - begin, static_cast<size_t>(*row_bytes)});
  return true;
}

// The cells of one stream of a cache.
bool read_stream(Reader* in, std::vector<SlotPart>* rows) {
  const auto n_cells = in->take<uint32_t>();
  if (!n_cells) return false;
  for (uint32_t cell = 0; cell < *n_cells; ++cell) {
    const auto position = in->take<int32_t>();
    const auto n_sequences = in->take<uint32_t>();
    if (!position || !n_sequences || *n_sequences > kMostSequences || !in->skip(4 * uint64_t{*n_sequences})) return false;
  }
  if (*n_cells == 0) return true;
  const auto is_transposed = in->take<uint32_t>(), n_layers = in->take<uint32_t>();
  if (!in->skip(8) || !is_transposed || !n_layers || *is_transposed != 0 || *n_layers == 0 || *n_layers > kMostLayers) return false;
  for (uint32_t i = 0; i < 2 * *n_layers; ++i) {
    if (!read_layer(in, *n_cells, rows)) return false;
  }
  return true;
}

// One cache after another, as far as they are understood.
void read_caches(Reader in, std::vector<SlotPart>* rows) {
  while (in.left() > 0) {
    const auto n_streams = in.take<uint32_t>();
    if (!n_streams || *n_streams == 0 || *n_streams > kMostStreams) return;
    for (uint32_t s = 0; s < *n_streams; ++s) {
      if (!read_stream(&in, rows)) return;
    }
  }
}

}  // namespace

std::vector<SlotPart> find_rows(std::span<const uint8_t> file) {
  Reader in(file);
  const auto magic = in.take<uint32_t>(), version = in.take<uint32_t>(), n_tokens = in.take<uint32_t>();
  if (!magic || (*magic != kSessionMagic && *magic != kSequenceMagic)) throw SlotFileError("it is not a slot or session file of llama.cpp");
  const bool is_session = *magic == kSessionMagic;
  if (!version || *version != (is_session ? kSessionVersion : kSequenceVersion)) {
    throw SlotFileError("it has version " + std::to_string(version.value_or(0)) + " of llama.cpp's format, not " +
                        std::to_string(is_session ? kSessionVersion : kSequenceVersion));
  }
  if (!n_tokens || !in.skip(4 * uint64_t{*n_tokens})) throw SlotFileError("it ends within its tokens");
  if (is_session) {  // the name of the architecture
    const auto length = in.take<uint32_t>();
    if (!length || !in.skip(*length)) throw SlotFileError("it ends within its header");
  }
  std::vector<SlotPart> rows, parts;
  read_caches(in, &rows);
  size_t done = 0;
  for (const SlotPart& part : rows) {
    if (part.begin > done) parts.push_back({done, part.begin - done, 0});
    if (part.bytes > 0) parts.push_back(part);
    done = part.begin + part.bytes;
  }
  if (done < file.size()) parts.push_back({done, file.size() - done, 0});
  return parts;
}

}  // namespace kvt::cli
