/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fibers: stacks between which a thread changes. Each thread of the process has one scheduler, on the stack it was started with.
 */
#ifndef CUDASIM_SIM_FIBER_H
#define CUDASIM_SIM_FIBER_H

#include <memory>
#include <stddef.h>

namespace cudasim {

class Fiber {
  public:
    /* `body` is called at the first enter() and never returns. */
    explicit Fiber(void (*body)());
    ~Fiber();
    Fiber(const Fiber &) = delete;
    Fiber &operator=(const Fiber &) = delete;

    void enter(); /* the scheduler: run the fiber until it leaves */
    void leave(); /* the fiber: back to the scheduler, which may enter again */

    struct Inside;

  private:
    static void start();
    std::unique_ptr<Inside> inside;
};

} // namespace cudasim

#endif
