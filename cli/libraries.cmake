# Libraries of others, compiled into the program: it then needs libc and libstdc++ alone, and one file runs wherever those are as new.
# Debian: libcli11-dev libfmt-dev nlohmann-json3-dev.
find_package(CLI11 REQUIRED)
find_package(fmt REQUIRED)
find_package(nlohmann_json REQUIRED)

add_library(kvturbo_fmt STATIC fmt_library.cc)
target_include_directories(kvturbo_fmt SYSTEM PUBLIC $<TARGET_PROPERTY:fmt::fmt,INTERFACE_INCLUDE_DIRECTORIES>)

# cpp-httplib: the copy in llama.cpp's source tree. Plain HTTP to this machine, so no TLS and no compression.
set(httplib_folder ${KVTURBO_GGML_SOURCE}/../vendor/cpp-httplib)
if(NOT EXISTS ${httplib_folder}/httplib.cpp)
  message(FATAL_ERROR "no vendor/cpp-httplib beside KVTURBO_GGML_SOURCE=${KVTURBO_GGML_SOURCE}: "
    "set it to the ggml folder of a whole llama.cpp source tree, or leave the program out with -DKVTURBO_CLI=OFF")
endif()
add_library(kvturbo_httplib STATIC ${httplib_folder}/httplib.cpp)
target_include_directories(kvturbo_httplib SYSTEM PUBLIC ${httplib_folder})
# Sections, so that what the program does not use is dropped.
target_compile_options(kvturbo_httplib PRIVATE -w -ffunction-sections -fdata-sections)
target_link_libraries(kvturbo_httplib PUBLIC Threads::Threads)
