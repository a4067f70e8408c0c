#include "state_container.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "api/engine_encode.h"
#include "format/half.h"
#include "format/state_row.h"
#include "slot_file.h"

namespace kvt::cli {
namespace {

constexpr uint8_t kMagic[4] = {'K', 'V', 'T', 'S'};
constexpr uint16_t kVersion = 1;
constexpr size_t kChunkHeaderBytes = 24;
constexpr size_t kMostChunkRows = 4096, kMostPlainBytes = size_t{1} << 22, kMostValues = 65536;
enum Kind : uint8_t { kPlain = 0, kRows = 1 };
enum Tag : uint8_t { kAsItIs = 0, kUnconditioned = 1, kFirstConditioning = 2 };

using Bytes = std::vector<uint8_t>;

template <typename T>
void put(Bytes* to, T value) {
  for (size_t i = 0; i < sizeof value; ++i) to->push_back(static_cast<uint8_t>(static_cast<uint64_t>(value) >> 8 * i));
}
template <typename T>
T get(const uint8_t* from) {
  uint64_t value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) value |= uint64_t{from[i]} << 8 * i;
  return static_cast<T>(value);
}

struct CodecFree {
  void operator()(kvt_codec* codec) const { kvt_codec_destroy(codec); }
};

// Rows of one shape: between StateRow, bytes of a container, and halves of a slot file.
class RowCoder {
 public:
  RowCoder(kvt_codec_id id, kvt_side side, unsigned head_dim, unsigned n_heads) : shape_(make_side_layout(id, side, head_dim), n_heads) {
    kvt_codec* codec = nullptr;
    if (kvt_codec_create(id, head_dim, head_dim, &codec) != KVT_OK) throw ContainerError("a chunk has a codec that cannot be made here");
    codec_.reset(codec);
    page_.resize(kvt_page_bytes(codec, side));
  }

  const StateRowShape& shape() const { return shape_; }
  size_t code_bytes() const { return (shape_.n_values() * shape_.code_bits + 7) / 8; }
  size_t row_bytes() const { return 1 + 2 * shape_.n_norms() + code_bytes(); }  // behind the tag

  void write(const StateRow& row, Bytes* to) const {
    put(to, row.piece);
    for (const uint16_t norm : row.norms) put(to, norm);
    const size_t begin = to->size();
    to->resize(begin + code_bytes());
    for (size_t i = 0, bit = 0; i < row.codes.size(); ++i, bit += shape_.code_bits) {
      const unsigned shifted = unsigned{row.codes[i]} << bit % 8;
      (*to)[begin + bit / 8] = static_cast<uint8_t>((*to)[begin + bit / 8] | shifted);
      if (shifted > 0xff) (*to)[begin + bit / 8 + 1] = static_cast<uint8_t>(shifted >> 8);
    }
  }
  // from: row_bytes() of them.
  StateRow read(const uint8_t* from, const uint8_t* conditioning) const {
    StateRow row;
    row.piece = from[0];
    row.norms.resize(shape_.n_norms());
    for (size_t i = 0; i < row.norms.size(); ++i) row.norms[i] = get<uint16_t>(from + 1 + 2 * i);
    const uint8_t* codes = from + 1 + 2 * row.norms.size();
    row.codes.resize(shape_.n_values());
    for (size_t i = 0, bit = 0; i < row.codes.size(); ++i, bit += shape_.code_bits) {
      unsigned two = codes[bit / 8];
      if (bit / 8 + 1 < code_bytes()) two |= unsigned{codes[bit / 8 + 1]} << 8;
      row.codes[i] = static_cast<uint8_t>(two >> bit % 8 & ((1u << shape_.code_bits) - 1));
    }
    row.piece_bytes.resize(shape_.piece_bytes());
    if (conditioning != nullptr) {
      row.conditioning = conditioning_digest(conditioning, shape_.conditioning_bytes());
      cut_piece(shape_, conditioning, row.piece, row.piece_bytes.data());
    }
    return row;
  }

  // The row as the engine saves it.
  void rebuild(const StateRow& row, const uint8_t* conditioning, bool plain_values, uint16_t* halves) {
    const unsigned d = shape_.head_dim;
    for (unsigned head = 0; head < shape_.n_heads; ++head) {
      float values[KVT_MAX_HEAD_DIM];
      kvt_internal::write_cell(codec_.get(), shape_.side, page_.data(), page_.size(), 0, row.codes.data() + size_t{head} * d,
                               row.norms.data() + size_t{head} * shape_.norms_per_head);
      kvt_decode(codec_.get(), shape_.side, page_.data(), page_.size(), 0, 1, values, d);
      for (unsigned i = 0; i < d; ++i) {
        const size_t at = size_t{head} * d + i;
        if (conditioning != nullptr) {
          const auto mean = static_cast<float>(static_cast<int8_t>(conditioning[at]));
          const float unit = std::bit_cast<float>(get<uint32_t>(conditioning + shape_.n_values() + 4 * size_t{head}));
          const float scale = half_to_float(get<uint16_t>(conditioning + shape_.n_values() + 4 * size_t{shape_.n_heads} + 2 * at));
          values[i] = values[i] * scale + unit * mean;
        }
        halves[at] = float_to_half(values[i]);
      }
    }
    if (!plain_values) hide_state_row(shape_, row, halves);
  }

 private:
  StateRowShape shape_;
  std::unique_ptr<kvt_codec, CodecFree> codec_;
  Bytes page_;
};

// ---- packing

void write_chunk(Kind kind, const StateRowShape* shape, size_t n_conditionings, size_t n, const Bytes& payload, const WriteBytes& write) {
  Bytes header;
  put(&header, static_cast<uint8_t>(kind));
  put(&header, static_cast<uint8_t>(shape != nullptr ? shape->codec : 0));
  put(&header, static_cast<uint8_t>(shape != nullptr ? shape->side : 0));
  put(&header, static_cast<uint8_t>(n_conditionings));
  put(&header, static_cast<uint16_t>(shape != nullptr ? shape->head_dim : 0));
  put(&header, static_cast<uint16_t>(shape != nullptr ? shape->n_heads : 0));
  put(&header, static_cast<uint32_t>(n));
  put(&header, static_cast<uint32_t>(payload.size()));
  put(&header, crc32(0, payload.data(), payload.size()));
  put(&header, crc32(0, header.data(), header.size()));
  write(header);
  write(payload);
}

void write_plain(std::span<const uint8_t> bytes, const WriteBytes& write) {
  for (size_t done = 0; done < bytes.size(); done += kMostPlainBytes) {
    const size_t n = std::min(kMostPlainBytes, bytes.size() - done);
    write_chunk(kPlain, nullptr, 0, n, Bytes(bytes.begin() + static_cast<ptrdiff_t>(done), bytes.begin() + static_cast<ptrdiff_t>(done + n)), write);
  }
}

// The shape of which rows of a part are: their checksums tell. None: stock's rows.
std::optional<RowCoder> find_shape(const uint16_t* halves, size_t n_values, size_t n_rows) {
  StateRow row;
  for (const unsigned head_dim : {64u, 80u, 96u, 112u, 128u, 192u, 256u}) {
    if (n_values % head_dim != 0) continue;
    for (int id = KVT_CODEC_HYBRID; is_known_codec(id); ++id) {
      for (const kvt_side side : {KVT_KEY, KVT_VALUE}) {
        RowCoder coder(static_cast<kvt_codec_id>(id), side, head_dim, static_cast<unsigned>(n_values / head_dim));
        for (size_t i = 0; i < n_rows; ++i) {
          // Rows of the first and the last tokens are exact: look in the middle first.
          const size_t at = (n_rows / 2 + i) % n_rows;
          if (find_state_row(coder.shape(), halves + at * n_values, &row)) return coder;
          if (i >= 128) break;
        }
      }
    }
  }
  return std::nullopt;
}

void write_rows(RowCoder* coder, const uint16_t* halves, size_t n_rows, const WriteBytes& write, PackFigures* figures) {
  const StateRowShape& shape = coder->shape();
  const size_t n = shape.n_values();
  std::map<uint32_t, ConditioningPieces> pieces;
  StateRow row;
  for (size_t i = 0; i < n_rows; ++i) {
    if (!find_state_row(shape, halves + i * n, &row) || row.conditioning == 0) continue;
    pieces.try_emplace(row.conditioning, shape).first->second.add(row);
  }
  std::erase_if(pieces, [](const auto& entry) { return !entry.second.is_complete(entry.first); });
  while (pieces.size() > 200) pieces.erase(pieces.begin());  // a tag is a byte; those rows stay as they are
  Bytes conditionings;
  for (const auto& [digest, of_it] : pieces) conditionings.insert(conditionings.end(), of_it.bytes().begin(), of_it.bytes().end());
  std::vector<uint16_t> again(n);
  for (size_t begin = 0; begin < n_rows; begin += kMostChunkRows) {
    const size_t end = std::min(n_rows, begin + kMostChunkRows);
    Bytes payload = conditionings;
    for (size_t i = begin; i < end; ++i) {
      const uint16_t* values = halves + i * n;
      bool is_coded = find_state_row(shape, values, &row);
      Tag tag = kUnconditioned;
      const uint8_t* conditioning = nullptr;
      if (is_coded && row.conditioning != 0) {
        const auto it = pieces.find(row.conditioning);
        is_coded = it != pieces.end();
        if (is_coded) conditioning = it->second.bytes().data();
        if (is_coded) tag = static_cast<Tag>(kFirstConditioning + std::distance(pieces.begin(), it));
      }
      if (is_coded) {
        Bytes stored;
        coder->write(row, &stored);
        coder->rebuild(coder->read(stored.data(), conditioning), conditioning, false, again.data());
        is_coded = std::equal(again.begin(), again.end(), values);
      }
      ++figures->rows;
      figures->rows_as_codes += is_coded;
      payload.push_back(is_coded ? tag : kAsItIs);
      if (is_coded) {
        coder->write(row, &payload);
      } else {
        for (size_t k = 0; k < n; ++k) put(&payload, values[k]);
      }
    }
    write_chunk(kRows, &shape, pieces.size(), end - begin, payload, write);
  }
}

// ---- unpacking

struct Chunk {
  Kind kind;
  size_t n_conditionings, n;
  std::optional<RowCoder> coder;
  std::span<const uint8_t> payload;
};

Chunk read_chunk(std::span<const uint8_t>* left, bool ignores_crc) {
  if (left->size() < kChunkHeaderBytes) throw ContainerError("it ends too early");
  const uint8_t* h = left->data();
  if (!ignores_crc && get<uint32_t>(h + 20) != crc32(0, h, 20)) throw ContainerError("a chunk's header is damaged");
  const uint32_t n_payload = get<uint32_t>(h + 12);
  *left = left->subspan(kChunkHeaderBytes);
  if (n_payload > left->size()) throw ContainerError("it ends too early");
  Chunk chunk{static_cast<Kind>(h[0]), h[3], get<uint32_t>(h + 8), std::nullopt, left->subspan(0, n_payload)};
  *left = left->subspan(n_payload);
  if (!ignores_crc && get<uint32_t>(h + 16) != crc32(0, chunk.payload.data(), n_payload)) throw ContainerError("a chunk is damaged");
  if (chunk.kind == kPlain) {
    if (chunk.n != n_payload || chunk.n == 0) throw ContainerError("a chunk has a wrong size");
    return chunk;
  }
  const unsigned codec = h[1], side = h[2], head_dim = get<uint16_t>(h + 4), n_heads = get<uint16_t>(h + 6);
  const bool is_known = chunk.kind == kRows && is_known_codec(static_cast<int>(codec)) && codec != KVT_CODEC_F16 && side <= KVT_VALUE &&
                        is_supported_head_dim(head_dim) && n_heads > 0 && size_t{head_dim} * n_heads <= kMostValues && chunk.n > 0 &&
                        chunk.n <= kMostChunkRows;
  if (!is_known) throw ContainerError("a chunk is of an unknown kind");
  chunk.coder.emplace(static_cast<kvt_codec_id>(codec), static_cast<kvt_side>(side), head_dim, n_heads);
  return chunk;
}

void unpack_rows(Chunk* chunk, bool plain_values, Bytes* out) {
  RowCoder& coder = *chunk->coder;
  const size_t conditioning_bytes = coder.shape().conditioning_bytes(), n = coder.shape().n_values();
  std::span<const uint8_t> left = chunk->payload;
  const auto take = [&](size_t bytes) {
    if (bytes > left.size()) throw ContainerError("a chunk ends too early");
    const uint8_t* begin = left.data();
    left = left.subspan(bytes);
    return begin;
  };
  const uint8_t* conditionings = take(chunk->n_conditionings * conditioning_bytes);
  std::vector<uint16_t> halves(n);
  for (size_t i = 0; i < chunk->n; ++i) {
    const unsigned tag = *take(1);
    if (tag == kAsItIs) {
      const uint8_t* values = take(2 * n);
      out->insert(out->end(), values, values + 2 * n);
      continue;
    }
    if (tag >= kFirstConditioning + chunk->n_conditionings) throw ContainerError("a row has a conditioning that is not there");
    const uint8_t* conditioning = tag >= kFirstConditioning ? conditionings + (tag - kFirstConditioning) * conditioning_bytes : nullptr;
    coder.rebuild(coder.read(take(coder.row_bytes()), conditioning), conditioning, plain_values, halves.data());
    for (const uint16_t half : halves) put(out, half);
  }
  if (!left.empty()) throw ContainerError("a chunk has a wrong size");
}

}  // namespace

PackFigures pack_slot(std::span<const uint8_t> file, uint64_t model_hash, const WriteBytes& write, const Progress& progress, uint8_t* header) {
  PackFigures figures;
  for (const SlotPart& part : find_rows(file)) {
    const std::span<const uint8_t> bytes = file.subspan(part.begin, part.bytes);
    std::optional<RowCoder> coder;
    std::vector<uint16_t> halves;
    if (part.row_bytes > 0 && part.row_bytes / 2 <= kMostValues) {
      halves.resize(part.bytes / 2);
      std::memcpy(halves.data(), bytes.data(), part.bytes);
      coder = find_shape(halves.data(), part.row_bytes / 2, part.bytes / part.row_bytes);
    }
    if (coder) {
      write_rows(&*coder, halves.data(), part.bytes / part.row_bytes, write, &figures);
    } else {
      if (part.row_bytes > 0) figures.rows += part.bytes / part.row_bytes;
      write_plain(bytes, write);
    }
    progress(static_cast<double>(part.begin + part.bytes) / static_cast<double>(file.size()));
  }
  Bytes fields(kMagic, kMagic + sizeof kMagic);
  put(&fields, kVersion);
  put(&fields, static_cast<uint16_t>(kContainerHeaderBytes));
  put(&fields, model_hash);
  put(&fields, uint64_t{file.size()});
  put(&fields, crc32(0, file.data(), file.size()));
  put(&fields, crc32(0, fields.data(), fields.size()));
  std::copy(fields.begin(), fields.end(), header);
  return figures;
}

ContainerHeader read_container_header(std::span<const uint8_t> container) {
  if (container.size() < sizeof kMagic || std::memcmp(container.data(), kMagic, sizeof kMagic) != 0) {
    throw ContainerError("it is not a packed slot: it does not begin with KVTS");
  }
  if (container.size() < kContainerHeaderBytes) throw ContainerError("it ends too early");
  const uint8_t* h = container.data();
  if (get<uint16_t>(h + 4) != kVersion) {
    throw ContainerError("it has version " + std::to_string(get<uint16_t>(h + 4)) + " of the format, not " + std::to_string(kVersion));
  }
  if (get<uint32_t>(h + 28) != crc32(0, h, 28) || get<uint16_t>(h + 6) != kContainerHeaderBytes) throw ContainerError("its header is damaged");
  return {get<uint64_t>(h + 8), get<uint64_t>(h + 16), get<uint32_t>(h + 24)};
}

void unpack_slot(std::span<const uint8_t> container, const UnpackOptions& options, const WriteBytes& write, const Progress& progress) {
  const ContainerHeader header = options.ignores_crc && container.size() >= kContainerHeaderBytes ? ContainerHeader{} : read_container_header(container);
  std::span<const uint8_t> left = container.subspan(kContainerHeaderBytes);
  uint64_t n_written = 0;
  uint32_t crc = 0;
  while (!left.empty()) {
    Chunk chunk = read_chunk(&left, options.ignores_crc);
    Bytes out(chunk.payload.begin(), chunk.payload.end());
    if (chunk.kind == kRows) {
      out.clear();
      unpack_rows(&chunk, options.plain_values, &out);
    }
    n_written += out.size();
    crc = crc32(crc, out.data(), out.size());
    write(out);
    progress(1 - static_cast<double>(left.size()) / static_cast<double>(container.size()));
  }
  if (options.ignores_crc) return;
  if (n_written != header.file_bytes) throw ContainerError("it ends too early");
  if (!options.plain_values && crc != header.file_crc) throw ContainerError("it gives other bytes than were packed");
}

}  // namespace kvt::cli
