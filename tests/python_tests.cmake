# The Python bindings on the library of this build. Exit code 77: skipped, for lack of numpy; then scripts/check_wheel.sh runs them.
find_package(Python3 COMPONENTS Interpreter)
if(Python3_FOUND)
  add_test(NAME python.bindings COMMAND Python3::Interpreter ${PROJECT_SOURCE_DIR}/python/tests/test_bindings.py)
  set_tests_properties(python.bindings PROPERTIES
    SKIP_RETURN_CODE 77
    ENVIRONMENT "PYTHONPATH=${PROJECT_SOURCE_DIR}/python;PYTHONDONTWRITEBYTECODE=1;LD_LIBRARY_PATH=$<TARGET_FILE_DIR:kvturbo_shared>")
endif()

# The wheel of this build's binaries, from nothing to a streamed answer. Skipped where packages cannot be fetched.
if(TARGET kvturbo AND TARGET ggml-kvturbo)
  add_test(NAME python.wheel COMMAND ${PROJECT_SOURCE_DIR}/scripts/check_wheel.sh ${PROJECT_BINARY_DIR} ${KVTURBO_TEST_MODEL})
  set_tests_properties(python.wheel PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 600 RESOURCE_LOCK install)
endif()
