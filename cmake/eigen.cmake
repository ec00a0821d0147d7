# Eigen, headers only, from the build requirement `cmeel-eigen`, which installs below site-packages/cmeel.prefix.
if(NOT TARGET Eigen3::Eigen)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c
      "import importlib.metadata as m, pathlib; print(pathlib.Path(m.distribution('cmeel-eigen').locate_file('cmeel.prefix')).as_posix())"
    OUTPUT_VARIABLE cmeel_prefix OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  find_package(Eigen3 CONFIG REQUIRED HINTS "${cmeel_prefix}")
endif()
