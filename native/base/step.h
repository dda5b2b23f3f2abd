#pragma once

/// A place where a process may die that matters: between two things that another process can see, or that
/// have to happen together. Nothing in the product. The addon that test/e2e/steps.test.ts builds counts them,
/// and kills or stops its process at the one that the test has named.
#ifdef KVSS_STEPS
namespace kvss {
void ReachStep(const char* name);
}
#define KVSS_STEP(name) ::kvss::ReachStep(name)
#else
#define KVSS_STEP(name) static_cast<void>(0)
#endif
