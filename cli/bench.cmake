# kvturbo bench. The kernel tables are inside the library (KVTURBO_ISA is read once in a process), hence its source folder.
target_sources(kvturbo PRIVATE
  command_bench.cc
  bench_kernel.cc
  bench_kernel_report.cc
  bench_model.cc
  bench_report.cc
  bench_support.cc
  ggml_attention.cc)
target_include_directories(kvturbo PRIVATE ${PROJECT_SOURCE_DIR}/src)
# Without ggml's headers the bench has nothing of the host to compare with.
if(KVTURBO_GGML_SOURCE AND EXISTS ${KVTURBO_GGML_SOURCE}/include/ggml-cpu.h)
  target_include_directories(kvturbo SYSTEM PRIVATE ${KVTURBO_GGML_SOURCE}/include)
  target_compile_definitions(kvturbo PRIVATE KVT_HAVE_GGML_HEADERS)
endif()
