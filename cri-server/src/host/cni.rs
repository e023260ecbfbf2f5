//! Calls CNI plugins as libcni does.
