# The files of the wheel (component wheel), laid out for a Python environment: bin/kvturbo, lib/libggml-kvturbo*.so where the program
# looks for it, and within the package kvturbo the library, its headers and licences.
# KVTURBO_PREBUILT names a build folder whose binaries are packed, without a build; by default it is this one.
if(NOT KVTURBO_PREBUILT)
  set(KVTURBO_PREBUILT ${PROJECT_BINARY_DIR})
endif()
set(prebuilt ${KVTURBO_PREBUILT}/bin)
install(PROGRAMS ${prebuilt}/kvturbo DESTINATION ${SKBUILD_SCRIPTS_DIR} COMPONENT wheel)
install(DIRECTORY ${prebuilt}/ DESTINATION ${SKBUILD_DATA_DIR}/lib COMPONENT wheel USE_SOURCE_PERMISSIONS
  FILES_MATCHING PATTERN "libggml-kvturbo*.so")
# A wheel holds no links: the library under the name that programs load, and a linker script under the name that -lkvturbo looks for.
install(PROGRAMS ${prebuilt}/libkvturbo.so.${PROJECT_VERSION} DESTINATION kvturbo/lib RENAME libkvturbo.so.0 COMPONENT wheel)
file(WRITE ${PROJECT_BINARY_DIR}/libkvturbo.so.ld "INPUT(libkvturbo.so.0)\n")
install(FILES ${PROJECT_BINARY_DIR}/libkvturbo.so.ld DESTINATION kvturbo/lib RENAME libkvturbo.so COMPONENT wheel)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/kvturbo DESTINATION kvturbo/include COMPONENT wheel)
