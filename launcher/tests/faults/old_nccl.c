/* A libnccl.so.2 of long ago: it has a version and little else. */
int ncclGetVersion(int *version) {
    *version = 2408;
    return 0;
}
