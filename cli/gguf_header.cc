#include "gguf_header.h"

#include "cli_error.h"

#include <algorithm>
#include <fstream>
#include <system_error>

namespace kvt::cli {

namespace {

// GGUF: "GGUF", version, number of tensors, number of entries; the entries, each a name, a type and a value; the tensors, each
// a name, dims, a type and an offset in the data, which begins behind them at a multiple of the alignment. Little-endian.
enum class ValueType : std::uint32_t {
  kUint8,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUint64,
  kInt64,
  kFloat64
};

class Reader {
 public:
  explicit Reader(const std::filesystem::path& file) : path_(file), stream_(file, std::ios::binary) {
    const std::uint64_t magic = integer(4), version = integer(4);
    if (magic != 0x46554747 || version < 2 || version > 3) fail();
  }

  GgufHeader read() {
    const std::uint64_t n_tensors = integer(8);
    for (std::uint64_t left = integer(8); left > 0; --left) {
      const std::string name = text();
      const auto type = static_cast<ValueType>(integer(4));
      if (type == ValueType::kString) {
        header_.texts[name] = text();
      } else {
        header_.numbers[name] = values(type);
      }
    }
    for (std::uint64_t left = n_tensors; left > 0; --left) {
      GgufTensor tensor{.name = text()};
      const std::uint64_t n_dims = integer(4);
      if (n_dims > 8) fail();
      for (std::uint64_t dim = 0; dim < n_dims; ++dim) integer(8);
      integer(4);  // type
      tensor.offset = integer(8);
      header_.tensors.push_back(tensor);
    }
    measure_tensors();
    return std::move(header_);
  }

 private:
  [[noreturn]] void fail() const {
    throw CliError(kExitFailure, path_.string(), "its GGUF header cannot be read", "get the file again");
  }

  std::uint64_t integer(int bytes) {
    unsigned char raw[8] = {};
    if (!stream_.read(reinterpret_cast<char*>(raw), bytes)) fail();
    std::uint64_t value = 0;
    for (int i = bytes - 1; i >= 0; --i) value = value << 8 | raw[i];
    return value;
  }

  std::string text() {
    const std::uint64_t size = integer(8);
    if (size > 1 << 24) fail();
    std::string value(size, '\0');
    if (!stream_.read(value.data(), static_cast<std::streamsize>(size))) fail();
    return value;
  }

  static int bytes_of(ValueType type) {
    switch (type) {
      case ValueType::kUint8:
      case ValueType::kInt8:
      case ValueType::kBool:
        return 1;
      case ValueType::kUint16:
      case ValueType::kInt16:
        return 2;
      case ValueType::kUint32:
      case ValueType::kInt32:
      case ValueType::kFloat32:
        return 4;
      case ValueType::kUint64:
      case ValueType::kInt64:
      case ValueType::kFloat64:
        return 8;
      default:
        return 0;
    }
  }

  // A number, or the numbers of an array. Texts of an array are passed over: nothing here asks for them.
  std::vector<std::uint64_t> values(ValueType type) {
    std::uint64_t count = 1;
    if (type == ValueType::kArray) {
      type = static_cast<ValueType>(integer(4));
      count = integer(8);
    }
    const int bytes = bytes_of(type);
    if (bytes == 0 && type != ValueType::kString) fail();
    std::vector<std::uint64_t> list;
    for (; count > 0; --count) {
      if (type == ValueType::kString) {
        text();
      } else {
        list.push_back(integer(bytes));
      }
    }
    return list;
  }

  // A tensor reaches to the next one, the last one to the end of the file.
  void measure_tensors() {
    std::error_code error;
    header_.file_bytes = std::filesystem::file_size(path_, error);
    const auto found = header_.numbers.find("general.alignment");
    const std::uint64_t alignment = found != header_.numbers.end() && !found->second.empty() ? found->second.front() : 32;
    if (error || alignment == 0) fail();
    const auto head = static_cast<std::uint64_t>(stream_.tellg());
    const std::uint64_t data = (head + alignment - 1) / alignment * alignment;
    std::vector<GgufTensor>& tensors = header_.tensors;
    std::sort(tensors.begin(), tensors.end(), [](const GgufTensor& a, const GgufTensor& b) { return a.offset < b.offset; });
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      const std::uint64_t end =
          i + 1 < tensors.size() ? tensors[i + 1].offset : header_.file_bytes - std::min(data, header_.file_bytes);
      tensors[i].bytes = end - std::min(tensors[i].offset, end);
    }
  }

  std::filesystem::path path_;
  std::ifstream stream_;
  GgufHeader header_;
};

}  // namespace

std::string GgufHeader::architecture() const {
  const auto found = texts.find("general.architecture");
  return found != texts.end() ? found->second : "";
}

std::vector<std::uint64_t> GgufHeader::list(const std::string& name) const {
  const auto found = numbers.find(architecture() + "." + name);
  return found != numbers.end() ? found->second : std::vector<std::uint64_t>();
}

std::uint64_t GgufHeader::number(const std::string& name, std::uint64_t otherwise) const {
  const std::vector<std::uint64_t> found = list(name);
  return found.empty() ? otherwise : found.front();
}

GgufHeader read_gguf_header(const std::filesystem::path& file) { return Reader(file).read(); }

}  // namespace kvt::cli
