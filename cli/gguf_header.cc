#include "gguf_header.h"

#include "cli_error.h"

#include <fstream>
#include <map>
#include <numeric>
#include <vector>

namespace kvt::cli {

namespace {

// GGUF: "GGUF", version, number of tensors, number of entries; an entry is a name, a type and a value. Little-endian.
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
    integer(8);  // tensors
    for (std::uint64_t left = integer(8); left > 0; --left) {
      const std::string name = text();
      const auto type = static_cast<ValueType>(integer(4));
      if (type == ValueType::kString) {
        texts_[name] = text();
      } else {
        numbers_[name] = values(type);
      }
    }
    return header();
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

  // A number, or the numbers of an array. Floating-point ones and texts are passed over: nothing here asks for them.
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

  std::uint64_t number(const std::string& name, std::uint64_t otherwise) const {
    const auto found = numbers_.find(header_.architecture + "." + name);
    return found == numbers_.end() || found->second.empty() ? otherwise : found->second.front();
  }

  GgufHeader header() {
    header_.architecture = texts_["general.architecture"];
    header_.context_length = number("context_length", 0);
    const std::uint64_t n_layers = number("block_count", 0), n_heads = number("attention.head_count", 1);
    const std::uint64_t head_dim = n_heads > 0 ? number("embedding_length", 0) / n_heads : 0;
    // One number for all layers, or one for each.
    const auto each = numbers_.find(header_.architecture + ".attention.head_count_kv");
    const std::uint64_t n_kv_heads = each != numbers_.end() && each->second.size() == n_layers && n_layers > 1
                                         ? std::accumulate(each->second.begin(), each->second.end(), std::uint64_t{0})
                                         : number("attention.head_count_kv", n_heads) * n_layers;
    header_.kv_elements_per_token =
        n_kv_heads * (number("attention.key_length", head_dim) + number("attention.value_length", head_dim));
    return header_;
  }

  std::filesystem::path path_;
  std::ifstream stream_;
  std::map<std::string, std::string> texts_;
  std::map<std::string, std::vector<std::uint64_t>> numbers_;
  GgufHeader header_;
};

}  // namespace

GgufHeader read_gguf_header(const std::filesystem::path& file) { return Reader(file).read(); }

}  // namespace kvt::cli
