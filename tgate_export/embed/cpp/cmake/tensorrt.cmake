message(STATUS "Backend tensorrt: no")
