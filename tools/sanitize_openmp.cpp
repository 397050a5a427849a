// OpenMP's parallel regions on threads that ThreadSanitizer sees begin and end: it knows nothing of libgomp's own
// waiting, and would take every region for a race. Linked into the kernels where they are built to be watched, and
// nowhere else.
#include <pthread.h>

#include <vector>

namespace at {
int get_num_threads();
}

namespace {

thread_local int number = 0, team = 1;

struct Member {
    void (*run)(void*);
    void* data;
    int number, team;
};

void* member(void* argument) {
    const auto* self = static_cast<Member*>(argument);
    number = self->number, team = self->team;
    self->run(self->data);
    number = 0, team = 1;
    return nullptr;
}

}  // namespace

extern "C" {

int omp_get_thread_num() { return number; }
int omp_get_num_threads() { return team; }
int omp_in_parallel() { return team > 1; }
// As many as torch allows: callers have room for no more.
int omp_get_max_threads() { return at::get_num_threads(); }

void GOMP_parallel(void (*run)(void*), void* data, unsigned wanted, unsigned) {
    const int count = team > 1 ? 1 : wanted ? static_cast<int>(wanted) : omp_get_max_threads();
    std::vector<Member> members;
    for (int i = 0; i < count; ++i) members.push_back({run, data, i, count});
    std::vector<pthread_t> threads(count);
    for (int i = 1; i < count; ++i) pthread_create(&threads[i], nullptr, member, &members[i]);
    member(&members[0]);
    for (int i = 1; i < count; ++i) pthread_join(threads[i], nullptr);
}
}
