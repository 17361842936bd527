# What lets other projects find the two libraries: pkg-config files and a CMake package. Included after the
# targets are installed with EXPORT attuneTargets. Nothing here depends on the prefix: a tree that was
# installed elsewhere, or moved, is found all the same.
include(CMakePackageConfigHelpers)

# attune::attune and, where recording is all that is wanted, attune::store.
set_target_properties(attune-store PROPERTIES EXPORT_NAME store)
set(ATTUNE_CMAKE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/attune)
file(RELATIVE_PATH ATTUNE_PC_PREFIX ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
string(REGEX REPLACE "/$" "" ATTUNE_PC_PREFIX "${ATTUNE_PC_PREFIX}")
foreach(name attune attune-store)
  configure_file(${CMAKE_CURRENT_LIST_DIR}/${name}.pc.in ${PROJECT_BINARY_DIR}/${name}.pc @ONLY)
endforeach()
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/attuneConfig.cmake.in ${PROJECT_BINARY_DIR}/attuneConfig.cmake
  INSTALL_DESTINATION ${ATTUNE_CMAKE_DIR} NO_SET_AND_CHECK_MACRO)
# Before 1.0 a new minor version may change the interface.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/attuneConfigVersion.cmake COMPATIBILITY SameMinorVersion)

install(FILES ${PROJECT_SOURCE_DIR}/include/attune.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES ${PROJECT_BINARY_DIR}/attune.pc ${PROJECT_BINARY_DIR}/attune-store.pc
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
install(FILES ${PROJECT_BINARY_DIR}/attuneConfig.cmake ${PROJECT_BINARY_DIR}/attuneConfigVersion.cmake
  DESTINATION ${ATTUNE_CMAKE_DIR})
install(EXPORT attuneTargets NAMESPACE attune:: DESTINATION ${ATTUNE_CMAKE_DIR})

# Units for every user's own systemd; nobody's timer runs until they enable it. `attune service install` writes its own.
foreach(unit attune-nightly.service attune-nightly.timer)
  file(READ ${PROJECT_SOURCE_DIR}/packaging/systemd/${unit} ATTUNE_UNIT)
  string(REPLACE "/usr/bin/attune" "${CMAKE_INSTALL_FULL_BINDIR}/attune" ATTUNE_UNIT "${ATTUNE_UNIT}")
  file(WRITE ${PROJECT_BINARY_DIR}/systemd/${unit} "${ATTUNE_UNIT}")
  install(FILES ${PROJECT_BINARY_DIR}/systemd/${unit} DESTINATION lib/systemd/user)
endforeach()
