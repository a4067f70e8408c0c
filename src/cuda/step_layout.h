// A prepared step in device memory: kvt_cuda_prepare_step writes it, attention reads it.
#ifndef KVT_CUDA_STEP_LAYOUT_H
#define KVT_CUDA_STEP_LAYOUT_H

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace kvt::cuda {

// One row that a query attends in fp16.
struct ExactEntry {
  int32_t row;  // of the first rows, or n_first + slot of the ring
  float mask;   // -inf: there is none
};

struct StepShape {
  uint32_t n_streams, n_queries, n_cells, n_listed;  // n_listed: room for exact rows of a query

  __host__ __device__ uint32_t n_pages() const { return (n_cells + 63) / 64; }
  // Parts, as offsets in bytes:
  // uint16 [n_streams, n_pages]: bit j: query j sees some cell of the page by its codes; bit 8 + j: all of them, with mask 0
  __host__ __device__ static size_t pages_offset() { return 0; }
  // ExactEntry [n_streams, n_queries, n_listed]
  __host__ __device__ size_t entries_offset() const { return padded(size_t{n_streams} * n_pages() * 2); }
  // fp16 [n_streams, n_queries, 64 * n_pages]: the mask for codes, -inf for exact cells and beyond the last cell. Only of pages
  // where some query sees some cells but not all, or not with mask 0.
  __host__ __device__ size_t mask_offset() const {
    return entries_offset() + padded(size_t{n_streams} * n_queries * n_listed * sizeof(ExactEntry));
  }
  __host__ __device__ size_t bytes() const { return mask_offset() + size_t{n_streams} * n_queries * n_pages() * 128; }

 private:
  __host__ __device__ static size_t padded(size_t bytes) { return (bytes + 255) / 256 * 256; }
};

}  // namespace kvt::cuda

#endif
