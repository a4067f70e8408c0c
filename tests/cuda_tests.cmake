# Tests of the CUDA kernels: run where there is a GPU, skip elsewhere. Static but for the C library, so that scripts/cuda.sh can carry them
# to a machine that has a GPU and no compiler.
foreach(name cuda_encode cuda_cache cuda_attend cuda_step)
  add_executable(${name}_test ${CMAKE_CURRENT_LIST_DIR}/${name}_test.cc)
  target_include_directories(${name}_test PRIVATE ${PROJECT_SOURCE_DIR}/src ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
  target_link_libraries(${name}_test PRIVATE kvturbo_cuda kvturbo_warnings GTest::gtest_main Threads::Threads)
  target_link_options(${name}_test PRIVATE -static-libstdc++ -static-libgcc)
  add_test(NAME ${name} COMMAND ${name}_test)
  set_tests_properties(${name} PROPERTIES TIMEOUT 600 SKIP_REGULAR_EXPRESSION "no usable GPU here")
endforeach()
