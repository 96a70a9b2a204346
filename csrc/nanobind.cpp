// csrc/nanobind.cpp: nanobind's own sources, from its wheel. Included rather than named in setup.py, so that no object
// file is written to where a path out of this folder would lead.
#include "nb_combined.cpp"
