/* The bodies of _kernel_loops.c for one machine, for float and for double. */
#define REAL float
#define VEC v16f
#define INTEGERS v16i
#define WIDE v16d
#define LANES 16
#define PREFIX single_
#define ROOT(u) SINGLE_ROOT(u)
#define LARGER(a, b) SINGLE_LARGER(a, b)
#define DEGREE_SLOPE SINGLE_SLOPE
#define DEGREE_BEND SINGLE_BEND
#ifdef SINGLE_LOOKUP
#define LOOKUP(table, index) SINGLE_LOOKUP(table, index)
#endif
#include "_convolutional_body.h"
#include "_fully_connected_body.h"
#undef LOOKUP
#undef REAL
#undef VEC
#undef INTEGERS
#undef WIDE
#undef LARGER
#undef LANES
#undef PREFIX
#undef ROOT
#undef DEGREE_SLOPE
#undef DEGREE_BEND

#define REAL double
#define VEC v8d
#define INTEGERS v8l
#define WIDE v8d
#define LANES 8
#define PREFIX double_
#define ROOT(u) DOUBLE_ROOT(u)
#define LARGER(a, b) DOUBLE_LARGER(a, b)
#define DEGREE_SLOPE DOUBLE_SLOPE
#define DEGREE_BEND DOUBLE_BEND
#include "_convolutional_body.h"
#include "_fully_connected_body.h"
#undef REAL
#undef VEC
#undef INTEGERS
#undef WIDE
#undef LARGER
#undef LANES
#undef PREFIX
#undef ROOT
#undef DEGREE_SLOPE
#undef DEGREE_BEND
