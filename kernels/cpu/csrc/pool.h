/* What operations use to share work: their own number, and the units that nobody has taken yet. */
#ifndef QUIRE_POOL_H
#define QUIRE_POOL_H

#include <stdatomic.h>
#include <stdint.h>

struct qr_pool;

struct qr_worker {
    struct qr_pool *pool;
    int number;   /* 0 is the thread that asked for the work */
    int threads;
    unsigned phase; /* how many phases this thread has ended in the program */
    int32_t pass;   /* how often the program ran before, of the times that it was asked for */
};

/* The next unit of work of this phase that no thread has taken: 0, 1, 2 ... */
int64_t qr_take(struct qr_worker *worker);

/* Waits until all threads are here; the units of the next phase begin at 0. */
void qr_end_phase(struct qr_worker *worker);

#endif
