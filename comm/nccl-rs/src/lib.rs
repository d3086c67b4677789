//! A thin binding to NCCL, opened at run time.
