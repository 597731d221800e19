/* All kernels, for the file that includes this one. */

#include "common.h"
#include "vector.h"
#include "tiles.h"
#include "attention.h"
#include "pool.h"
#include "rotary.h"
#include "layers.h"
