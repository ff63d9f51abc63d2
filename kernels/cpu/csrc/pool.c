/* One pool of threads for whole steps. Threads that wait spin briefly, then sleep in the kernel. */
#define _GNU_SOURCE
#include "pool.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "levels.h"
#include "quire_cpu.h"

enum { LINE = 64, COUNTERS = 4, SPINS = 4000 };

struct counter {
    _Alignas(LINE) atomic_llong next;
};

/* Threads wait for its value to change. */
struct signal {
    _Alignas(LINE) atomic_uint value;
    atomic_int sleepers;
};

struct qr_pool {
    int threads;
    pthread_t *members; /* all but the first */
    struct counter counters[COUNTERS];
    _Alignas(LINE) atomic_int arrived;
    struct signal barrier; /* how often all were there */
    struct signal started; /* programs handed out, and the last: to end */
    atomic_bool ends;
    const struct qr_call *calls;
    const struct qr_step *step;
    const struct qr_kernels *kernels;
    int64_t count;
    int32_t passes;
};

struct member {
    struct qr_pool *pool;
    int number;
};

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void wait_while(struct signal *signal, unsigned value) {
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&signal->value, memory_order_acquire) != value) return;
        relax();
    }
    atomic_fetch_add(&signal->sleepers, 1);
    while (atomic_load(&signal->value) == value)
        syscall(SYS_futex, &signal->value, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
    atomic_fetch_sub(&signal->sleepers, 1);
}

static void advance(struct signal *signal) {
    atomic_fetch_add(&signal->value, 1);
    if (atomic_load(&signal->sleepers) > 0) /* a call into the kernel only where one sleeps */
        syscall(SYS_futex, &signal->value, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

int64_t qr_take(struct qr_worker *worker) {
    struct counter *counter = &worker->pool->counters[worker->phase % COUNTERS];
    return atomic_fetch_add_explicit(&counter->next, 1, memory_order_relaxed);
}

void qr_end_phase(struct qr_worker *worker) {
    struct qr_pool *pool = worker->pool;
    unsigned generation = atomic_load_explicit(&pool->barrier.value, memory_order_relaxed);
    worker->phase++;
    if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) + 1 < pool->threads) {
        wait_while(&pool->barrier, generation);
        return;
    }
    /* The last one here: nobody takes units, so those of the phase after the next can be reset. */
    struct counter *counter = &pool->counters[(worker->phase + 1) % COUNTERS];
    atomic_store_explicit(&counter->next, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
    if (pool->threads > 1) advance(&pool->barrier);
}

static void work(struct qr_pool *pool, int number) {
    struct qr_worker worker = {pool, number, pool->threads, 0, 0};
    /* Read now: behind the last phase the next program may be here already. */
    const struct qr_call *calls = pool->calls;
    const struct qr_step *step = pool->step;
    const struct qr_kernels *kernels = pool->kernels;
    const int64_t count = pool->count;
    const int32_t passes = pool->passes;
    for (; worker.pass < passes; worker.pass++)
        for (int64_t i = 0; i < count; i++) {
            kernels->operations[calls[i].operation](calls[i].arguments, step, &worker);
            qr_end_phase(&worker);
        }
}

static void *serve(void *argument) {
    struct member member = *(struct member *)argument;
    struct qr_pool *pool = member.pool;
    free(argument);
    unsigned seen = 0;
    for (;;) {
        wait_while(&pool->started, seen);
        seen++;
        if (atomic_load(&pool->ends)) return NULL;
        work(pool, member.number);
    }
}

QR_EXPORT void qr_pool_free(struct qr_pool *pool) {
    if (pool == NULL) return;
    atomic_store(&pool->ends, true);
    advance(&pool->started);
    for (int i = 0; i + 1 < pool->threads; i++) pthread_join(pool->members[i], NULL);
    free(pool->members);
    free(pool);
}

/* cpus has one for each thread, or is NULL: then they stay where the kernel puts them. The first
 * thread is the caller's, which is never moved. NULL where there is no memory or no thread. */
QR_EXPORT struct qr_pool *qr_pool_new(int threads, const int *cpus) {
    struct qr_pool *pool = aligned_alloc(LINE, (sizeof *pool + LINE - 1) / LINE * LINE);
    if (pool == NULL) return NULL;
    memset(pool, 0, sizeof *pool);
    pool->threads = threads;
    pool->members = calloc((size_t)threads, sizeof *pool->members);
    if (pool->members == NULL) {
        free(pool);
        return NULL;
    }
    for (int number = 1; number < threads; number++) {
        struct member *member = malloc(sizeof *member);
        if (member != NULL) *member = (struct member){pool, number};
        if (member == NULL ||
            pthread_create(&pool->members[number - 1], NULL, serve, member) != 0) {
            free(member);
            pool->threads = number;
            qr_pool_free(pool);
            return NULL;
        }
        if (cpus != NULL) {
            cpu_set_t set;
            CPU_ZERO(&set);
            CPU_SET(cpus[number], &set);
            pthread_setaffinity_np(pool->members[number - 1], sizeof set, &set);
        }
    }
    return pool;
}

/* Runs a program so many times, and returns when all of it is done. One caller at a time. */
QR_EXPORT void qr_run(struct qr_pool *pool, const struct qr_kernels *kernels,
                      const struct qr_call *calls, int64_t count, int32_t passes,
                      const struct qr_step *step) {
    /* With no phase to end nothing keeps the next program from beginning while a thread still
     * reads this one. */
    if (count < 1 || passes < 1) return;
    pool->calls = calls;
    pool->count = count;
    pool->passes = passes;
    pool->step = step;
    pool->kernels = kernels;
    for (int i = 0; i < COUNTERS; i++)
        atomic_store_explicit(&pool->counters[i].next, 0, memory_order_relaxed);
    if (pool->threads > 1) advance(&pool->started);
    work(pool, 0);
}
