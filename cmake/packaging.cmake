# Tarball and Debian package: cpack -G TGZ or cpack -G DEB in the build folder. They hold what `cmake --install` installs.
if(NOT PROJECT_IS_TOP_LEVEL)
  return()
endif()
install(FILES ${PROJECT_SOURCE_DIR}/README.md ${PROJECT_SOURCE_DIR}/licenses/third-party.txt DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR} RENAME copyright)  # Debian's name for it
install(DIRECTORY ${PROJECT_SOURCE_DIR}/docs DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(FILES ${PROJECT_SOURCE_DIR}/examples/attention_loop.cc DESTINATION ${CMAKE_INSTALL_DOCDIR}/examples)

set(CPACK_GENERATOR TGZ DEB)
set(CPACK_PACKAGE_NAME kvturbo)
set(CPACK_PACKAGE_VENDOR "kvturbo")
set(CPACK_PACKAGE_CONTACT "The kvturbo developers")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "${PROJECT_DESCRIPTION}")
set(CPACK_PACKAGE_DESCRIPTION "A backend plug-in that compresses the KV cache of stock llama.cpp, the program kvturbo that starts\
 llama.cpp with it, and the codec as a C library.")
set(CPACK_STRIP_FILES ON)
string(TOLOWER "kvturbo-${PROJECT_VERSION}-${CMAKE_SYSTEM_NAME}-${CMAKE_SYSTEM_PROCESSOR}" CPACK_PACKAGE_FILE_NAME)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
set(CPACK_DEBIAN_PACKAGE_SUGGESTS llama.cpp)
# Versions of libc6 and libstdc++6 from the binaries; dpkg-shlibdeps is in Debian's dpkg-dev.
find_program(KVTURBO_DPKG_SHLIBDEPS dpkg-shlibdeps)
if(KVTURBO_DPKG_SHLIBDEPS)
  set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
else()
  set(CPACK_DEBIAN_PACKAGE_DEPENDS "libc6 (>= 2.34), libgcc-s1, libstdc++6 (>= 5)")
endif()
include(CPack)
