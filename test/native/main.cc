#include <cstring>
#include <exception>

#include "harness.h"

using kvss::test::Case;
using kvss::test::Cases;

/// Runs the tests whose name contains the argument, or only the one that it names; `--list` names all of
/// them.
int main(int argc, char** argv) {
  const char* filter = argc > 1 ? argv[1] : "";
  if (std::strcmp(filter, "--list") == 0) {
    for (const Case& test : Cases()) std::cout << test.name << "\n";
    return 0;
  }
  bool exact = false;
  for (const Case& test : Cases()) exact |= std::strcmp(test.name, filter) == 0;

  int ran = 0;
  bool failed = false;
  for (const Case& test : Cases()) {
    const bool wanted =
        exact ? std::strcmp(test.name, filter) == 0 : std::strstr(test.name, filter) != nullptr;
    if (!wanted) continue;
    ++ran;
    std::string why;
    try {
      test.body();
      std::cout << "ok " << test.name << std::endl;
      continue;
    } catch (const kvss::test::Skipped& skipped) {
      std::cout << "ok " << test.name << " # skipped: " << skipped.why << std::endl;
      continue;
    } catch (const kvss::test::Failure& failure) {
      why = failure.why;
    } catch (const std::exception& error) {
      why = error.what();
    }
    failed = true;
    std::cout << "not ok " << test.name << ": " << why << std::endl;
  }
  if (ran == 0) std::cout << "not ok " << filter << ": no test has this name" << std::endl;
  return failed || ran == 0 ? 1 : 0;
}
