/* Constants of mpi.h that are casts, which the binding generator cannot read. */
#include <mpi.h>

void *lockstep_mpi_in_place(void) { return MPI_IN_PLACE; }
