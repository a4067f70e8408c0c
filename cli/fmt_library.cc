// {fmt} compiled from its headers: distributions ship it as a shared library, and the program must run where there is none.
#include <fmt/format-inl.h>

namespace fmt::detail {
// What format.h declares as instantiated elsewhere, for char.
template auto thousands_sep_impl<char>(locale_ref) -> thousands_sep_result<char>;
template auto decimal_point_impl<char>(locale_ref) -> char;
}  // namespace fmt::detail
