// The readable truth: plain loops in the order of format.md. Every kernel must emit the same bytes and decode to the same
// values.
#ifndef KVT_REFERENCE_REFERENCE_H
#define KVT_REFERENCE_REFERENCE_H

#include <cstdint>

#include "format/page_layout.h"
#include "format/rotation_tables.h"

namespace kvt::reference {

// v <- (C_m (x) H_p) D v, unnormalised: the product of the two factors with the signs first (format.md section 2).
void rotate_forward(const SignTable& signs, unsigned d, float* v);
// v <- D (C_m (x) H_p) v, unnormalised: its transpose.
void rotate_backward(const SignTable& signs, unsigned d, float* v);

// Trellis codes of a rotated vector y [head_dim] (section 5, step 4): codes and quantised values.
void encode_trellis(const SideLayout& layout, const float* y, uint8_t* codes, float* quantised);
// Codes of one slot [head_dim], with the sketch sign in bit 3 for hybrid keys (sections 4.1 to 4.3).
void read_codes(const SideLayout& layout, const uint8_t* page, unsigned slot, uint8_t* codes);
void write_codes(const SideLayout& layout, const uint8_t* codes, uint8_t* page, unsigned slot);
// Positions of the codes in the level table (sections 3, 4.4).
void level_indices(const SideLayout& layout, const uint8_t* codes, uint8_t* index);

// Sum of a[i] * b[i] in the order of section 5, step 1. d: a multiple of 16.
float ordered_dot(const float* a, const float* b, unsigned d);

// Writes row x [head_dim] to one slot of a page (section 5). Other slots keep their contents. Rows that are not finite: step 2.
void encode_row(const SideLayout& layout, const float* x, uint8_t* page, unsigned slot);

// Reads one slot to x [head_dim] (section 2).
void decode_row(const SideLayout& layout, const uint8_t* page, unsigned slot, float* x);

}  // namespace kvt::reference

#endif
