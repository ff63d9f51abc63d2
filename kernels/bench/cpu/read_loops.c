/* How fast all threads read a buffer: sums, so that no load can be left out. */
#include <omp.h>
#include <stdint.h>

typedef uint64_t vector __attribute__((vector_size(32)));

enum { SUMS = 8 }; /* side by side, so that no load waits for an addition */

/* Each thread reads a part of its own, in so many streams at once. */
static inline __attribute__((always_inline)) uint64_t
read_all(const vector *data, int64_t vectors, int threads, int streams) {
    uint64_t total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
    {
        const int64_t part = vectors / threads, length = part / streams;
        const vector *from = data + omp_get_thread_num() * part;
        const int at_once = SUMS / streams;
        vector sums[SUMS] = {0};
        for (int64_t i = 0; i + at_once <= length; i += at_once) {
#pragma GCC unroll 8
            for (int stream = 0; stream < streams; stream++) {
#pragma GCC unroll 8
                for (int j = 0; j < at_once; j++)
                    sums[stream * at_once + j] += from[stream * length + i + j];
            }
        }
        for (int i = 0; i < SUMS; i++)
            total += sums[i][0] + sums[i][1] + sums[i][2] + sums[i][3];
    }
    return total;
}

uint64_t read_one_stream(const vector *data, int64_t vectors, int threads) {
    return read_all(data, vectors, threads, 1);
}

uint64_t read_four_streams(const vector *data, int64_t vectors, int threads) {
    return read_all(data, vectors, threads, 4);
}
