#include "reference/reference.h"

namespace kvt::reference {
namespace {

void flip_signs(const SignTable& signs, unsigned d, float* v) {
  for (unsigned i = 0; i < d; ++i) {
    if (sign_bit(signs, i)) v[i] = -v[i];
  }
}

// v <- (C_m (x) H_p) v; symmetric, so it serves both directions.
void transform(unsigned d, float* v) {
  const unsigned p = power_of_two_part(d), m = d / p;
  for (unsigned distance = 1; distance < p; distance *= 2) {
    for (unsigned i = 0; i < d; ++i) {
      if (i & distance) continue;  // p divides the block starts, so i & distance sees the index within the block
      const float a = v[i], b = v[i + distance];
      v[i] = a + b;
      v[i + distance] = a - b;
    }
  }
  const float* entries = hartley_entries(m);
  if (entries == nullptr) return;
  for (unsigned b = 0; b < p; ++b) {
    float column[7];
    for (unsigned a = 0; a < m; ++a) column[a] = v[a * p + b];
    for (unsigned a = 0; a < m; ++a) {
      float sum = column[0];  // entry 0 is 1
      for (unsigned k = 1; k < m; ++k) sum += entries[a * k % m] * column[k];
      v[a * p + b] = sum;
    }
  }
}

}  // namespace

void rotate_forward(const SignTable& signs, unsigned d, float* v) {
  flip_signs(signs, d, v);
  transform(d, v);
}

void rotate_backward(const SignTable& signs, unsigned d, float* v) {
  transform(d, v);
  flip_signs(signs, d, v);
}

float ordered_dot(const float* a, const float* b, unsigned d) {
  float lane[16] = {};
  for (unsigned i = 0; i < d; ++i) lane[i % 16] += a[i] * b[i];
  for (unsigned distance = 8; distance > 0; distance /= 2) {
    for (unsigned i = 0; i < distance; ++i) lane[i] += lane[i + distance];
  }
  return lane[0];
}

}  // namespace kvt::reference
