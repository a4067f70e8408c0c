# Tests of the plug-in. Included by tests/CMakeLists.txt when the plug-in is built. Exit code 77: skipped, for lack of a ggml, a host or
# a model (KVTURBO_HOST_BIN, KVTURBO_TEST_MODEL, KVTURBO_GGML2_DIR).
add_executable(plugin_graph_test ${CMAKE_CURRENT_LIST_DIR}/plugin_graph_test.cc)
target_link_libraries(plugin_graph_test PRIVATE GTest::gtest_main)
foreach(name no_memory life)
  add_executable(plugin_${name}_test ${CMAKE_CURRENT_LIST_DIR}/plugin_${name}_test.cc)
  target_link_libraries(plugin_${name}_test PRIVATE GTest::gtest_main Threads::Threads)
endforeach()
add_executable(plugin_dequantize ${CMAKE_CURRENT_LIST_DIR}/plugin_dequantize.cc)
foreach(target plugin_graph_test plugin_no_memory_test plugin_life_test plugin_dequantize)
  target_include_directories(${target} SYSTEM PRIVATE ${KVTURBO_GGML_SOURCE}/include)
  target_link_libraries(${target} PRIVATE kvturbo_warnings ${CMAKE_DL_LIBS})
  add_dependencies(${target} ggml-kvturbo)
endforeach()

add_executable(recent_rows_test ${CMAKE_CURRENT_LIST_DIR}/recent_rows_test.cc ${PROJECT_SOURCE_DIR}/plugin/recent_rows.cc)
target_include_directories(recent_rows_test PRIVATE ${PROJECT_SOURCE_DIR}/plugin ${PROJECT_SOURCE_DIR}/include)
target_include_directories(recent_rows_test SYSTEM PRIVATE ${KVTURBO_GGML_SOURCE}/include ${KVTURBO_GGML_SOURCE}/src)
target_link_libraries(recent_rows_test PRIVATE kvturbo_warnings GTest::gtest_main)
add_test(NAME plugin.recent_rows COMMAND recent_rows_test)

add_executable(key_means_test ${CMAKE_CURRENT_LIST_DIR}/key_means_test.cc ${PROJECT_SOURCE_DIR}/plugin/key_means.cc)
target_include_directories(key_means_test PRIVATE ${PROJECT_SOURCE_DIR}/plugin ${PROJECT_SOURCE_DIR}/include)
target_link_libraries(key_means_test PRIVATE kvturbo_warnings GTest::gtest_main)
add_test(NAME plugin.key_means COMMAND key_means_test)

# In a bare ggml; the plug-in of a target, and variables for it.
function(kvturbo_add_graph_test name folder plugin)
  add_test(NAME ${name} COMMAND plugin_graph_test)
  set_tests_properties(${name} PROPERTIES
    SKIP_RETURN_CODE 77
    TIMEOUT 120
    ENVIRONMENT "TEST_GGML_DIR=${folder};TEST_PLUGIN=$<TARGET_FILE:${plugin}>;${ARGN}")
endfunction()
set(unconditioned KVTURBO_CONDITION=off KVTURBO_SINKS=0)

# API 3 from the host, API 2 from the folder of an older one. Then with conditioning and exact rows, as by default.
foreach(codec f16 hybrid scalar43 k4v3 k3v3 k8v4)
  kvturbo_add_graph_test(plugin.graph.api3.${codec} "${KVTURBO_HOST_BIN}" ggml-kvturbo KVTURBO_CODEC=${codec} ${unconditioned})
  kvturbo_add_graph_test(plugin.graph.api2.${codec} "${KVTURBO_GGML2_DIR}" ggml-kvturbo KVTURBO_CODEC=${codec} ${unconditioned})
endforeach()
kvturbo_add_graph_test(plugin.graph.conditioned "${KVTURBO_HOST_BIN}" ggml-kvturbo KVTURBO_CODEC=k4v3)

# The GPU half of the plug-in, on a GPU that is emulated by the CPU.
kvturbo_add_plugin(ggml-kvturbo-emulated ${CMAKE_CURRENT_LIST_DIR}/emulated_gpu/emulated_stream.cc
  ${CMAKE_CURRENT_LIST_DIR}/emulated_gpu/emulated_kernels.cc)
target_link_libraries(ggml-kvturbo-emulated PRIVATE kvturbo_plugin_gpu_objects)
add_dependencies(plugin_graph_test ggml-kvturbo-emulated)
foreach(codec f16 hybrid scalar43 k4v3)
  kvturbo_add_graph_test(plugin.gpu_graph.${codec} "${KVTURBO_HOST_BIN}" ggml-kvturbo-emulated KVTURBO_CODEC=${codec} ${unconditioned})
endforeach()
kvturbo_add_graph_test(plugin.gpu_graph.conditioned "${KVTURBO_HOST_BIN}" ggml-kvturbo-emulated KVTURBO_CODEC=k4v3)

# Every allocation of the plug-in fails; contexts, threads, fork, unloading.
foreach(name no_memory life)
  foreach(codec f16 k4v3)
    add_test(NAME plugin.${name}.${codec} COMMAND plugin_${name}_test)
    set_tests_properties(plugin.${name}.${codec} PROPERTIES
      SKIP_RETURN_CODE 77
      TIMEOUT 120
      ENVIRONMENT "TEST_GGML_DIR=${KVTURBO_HOST_BIN};TEST_PLUGIN=$<TARGET_FILE:ggml-kvturbo>;KVTURBO_CODEC=${codec};KVTURBO_LOG=quiet;OMP_WAIT_POLICY=passive")
  endforeach()
endforeach()

# In llama.cpp's programs.
foreach(name bad_input memory metrics plumbing server)
  add_test(NAME plugin.${name} COMMAND ${CMAKE_CURRENT_LIST_DIR}/plugin_${name}_test.sh)
  set_tests_properties(plugin.${name} PROPERTIES
    SKIP_RETURN_CODE 77
    TIMEOUT 600
    PROCESSORS 2
    ENVIRONMENT "TEST_PLUGIN=$<TARGET_FILE:ggml-kvturbo>;TEST_HOST_BIN=${KVTURBO_HOST_BIN};TEST_MODEL=${KVTURBO_TEST_MODEL};TEST_SOURCE=${PROJECT_SOURCE_DIR};TEST_DEQUANTIZE=$<TARGET_FILE:plugin_dequantize>")
endforeach()

# Sequences and states, through the host's libllama.
if(EXISTS ${KVTURBO_HOST_BIN}/libllama.so AND EXISTS ${KVTURBO_GGML_SOURCE}/../include/llama.h)
  add_executable(plugin_sequences_test ${CMAKE_CURRENT_LIST_DIR}/plugin_sequences_test.cc)
  target_include_directories(plugin_sequences_test SYSTEM PRIVATE ${KVTURBO_GGML_SOURCE}/../include ${KVTURBO_GGML_SOURCE}/include)
  target_link_libraries(plugin_sequences_test PRIVATE kvturbo_warnings GTest::gtest_main ${KVTURBO_HOST_BIN}/libllama.so
    ${KVTURBO_HOST_BIN}/libggml.so ${KVTURBO_HOST_BIN}/libggml-base.so)
  set_target_properties(plugin_sequences_test PROPERTIES BUILD_RPATH ${KVTURBO_HOST_BIN})
  add_dependencies(plugin_sequences_test ggml-kvturbo)
  set(f16_model ${CMAKE_CURRENT_BINARY_DIR}/f16_weights.gguf)
  add_test(NAME plugin.f16_weights COMMAND plugin_dequantize ${KVTURBO_HOST_BIN} ${KVTURBO_TEST_MODEL} ${f16_model})
  set_tests_properties(plugin.f16_weights PROPERTIES FIXTURES_SETUP f16_weights)
  foreach(codec f16 k4v3)
    # One cache for all sequences, as llama-server has it; caches by stream and the other codecs: scripts/reliability.sh.
    add_test(NAME plugin.sequences.${codec} COMMAND plugin_sequences_test --gtest_filter=*Unified)
    set_tests_properties(plugin.sequences.${codec} PROPERTIES
      TIMEOUT 300
      PROCESSORS 2
      FIXTURES_REQUIRED f16_weights
      ENVIRONMENT "TEST_GGML_DIR=${KVTURBO_HOST_BIN};TEST_PLUGIN=$<TARGET_FILE:ggml-kvturbo>;TEST_MODEL=${f16_model};TEST_SOURCE=${PROJECT_SOURCE_DIR};OMP_WAIT_POLICY=passive;GOMP_SPINCOUNT=0;KVTURBO_LOG=quiet;KVTURBO_CODEC=${codec}")
  endforeach()
endif()
# The short forms of what docs/reliability.md lists.
add_test(NAME reliability.quick COMMAND ${PROJECT_SOURCE_DIR}/scripts/reliability.sh --quick)
set_tests_properties(reliability.quick PROPERTIES
  TIMEOUT 600
  PROCESSORS 2
  ENVIRONMENT "TEST_PLUGIN=$<TARGET_FILE:ggml-kvturbo>;TEST_HOST_BIN=${KVTURBO_HOST_BIN};TEST_MODEL=${KVTURBO_TEST_MODEL}")
