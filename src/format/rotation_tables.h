// Constants of the rotation: sign tables and small Hartley matrices (format.md section 2).
#ifndef KVT_FORMAT_ROTATION_TABLES_H
#define KVT_FORMAT_ROTATION_TABLES_H

#include <array>
#include <cstdint>

namespace kvt {

using SignTable = std::array<uint8_t, 32>;  // bit i % 8 of byte i / 8: 1 = coordinate i is negated

// SHA-256 of "kvturbo D1" and "kvturbo D2".
inline constexpr SignTable kSignsRotation = {0x23, 0xcd, 0xf8, 0x66, 0xc8, 0xc0, 0x8c, 0x92, 0xc8, 0x1d, 0x63, 0x1a, 0x2e, 0x67, 0xbe, 0x10,
                                             0x40, 0xb4, 0xe7, 0x0a, 0x4e, 0x59, 0x94, 0x5d, 0xb5, 0x73, 0x08, 0xcf, 0xa7, 0x37, 0xd4, 0x9b};
inline constexpr SignTable kSignsSketch = {0xf3, 0x19, 0xa1, 0xd2, 0x01, 0x52, 0x57, 0xa6, 0x1c, 0xa4, 0x63, 0xc2, 0xc4, 0x66, 0x8c, 0x69,
                                           0xab, 0xc5, 0x01, 0x68, 0xf1, 0xad, 0x61, 0x03, 0x81, 0x4e, 0xbe, 0xd5, 0x9f, 0x59, 0x8b, 0x54};

constexpr bool sign_bit(const SignTable& signs, unsigned i) { return (signs[i / 8] >> (i % 8)) & 1; }

// Entry k = cos(2 pi k / m) + sin(2 pi k / m); the matrix is C[a][b] = entry (a * b) % m.
inline constexpr std::array<float, 3> kHartley3 = {1.0f, 0.366025404f, -1.366025404f};
inline constexpr std::array<float, 5> kHartley5 = {1.0f, 1.260073511f, -0.221231742f, -1.396802247f, -0.642039522f};
inline constexpr std::array<float, 7> kHartley7 = {1.0f, 1.405321284f, 0.752406978f, -0.467085129f, -1.334852607f, -1.197448846f, -0.158341681f};

// nullptr for m = 1.
constexpr const float* hartley_entries(unsigned m) {
  return m == 3 ? kHartley3.data() : m == 5 ? kHartley5.data() : m == 7 ? kHartley7.data() : nullptr;
}

// d = power * odd
constexpr unsigned power_of_two_part(unsigned d) { return d & (~d + 1); }

}  // namespace kvt

#endif
