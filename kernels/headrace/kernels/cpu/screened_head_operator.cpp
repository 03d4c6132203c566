// The likeliest tokens of a head, as torch sees it.
#include "screened_head.h"

#if defined(__AMX_INT8__)

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "operator_checks.h"
#include "panel_product.h"
#include "panel_tensor.h"

namespace headrace::operators {

std::tuple<Tensor, Tensor> likeliest_of_head(const Tensor& x, const Tensor& panels, const Tensor& screen,
                                             const Tensor& scales, const Tensor& errors, double norm) {
  TORCH_CHECK(x.dim() == 2 && x.stride(1) == 1 && x.scalar_type() == at::kBFloat16,
              "x must be bfloat16 [token, in] with whole rows");
  TORCH_CHECK(x.size(0) >= 1 && x.size(0) <= kScreenedRows, "x must have 1 to ", kScreenedRows, " rows, not ",
              x.size(0));
  TORCH_CHECK(x.size(1) % kPanelDepth == 0, "x must be a multiple of ", kPanelDepth, " wide, not ", x.size(1));
  const int64_t out_count = scales.numel();
  const ScreenedHeadShape shape = {x.size(0), x.stride(0), x.size(1), out_count};
  const LinearShape linear_shape = {shape.row_count, shape.row_stride, shape.in_count, out_count, false};
  check_column(scales, at::kFloat, out_count, "scales");
  check_column(errors, at::kFloat, out_count, "errors");
  check_panels<TileByte>(screen, linear_shape, "the screen");
  const Screen screen_data = {data<TileByte>(screen), data<float>(scales), data<float>(errors),
                              static_cast<float>(norm)};
  const Tensor logits = at::empty({x.size(0), out_count}, x.options());
  Tensor token_ids = at::empty({x.size(0)}, x.options().dtype(at::kLong));
  Tensor peaks = at::empty({x.size(0)}, x.options().dtype(at::kFloat));
  const auto find = [&]<typename W>() {
    check_panels<W>(panels, linear_shape);
    headrace::likeliest_of_head<W>(data<BFloat16>(x), data<W>(panels), screen_data, shape,
                                   mutable_data<BFloat16>(logits), mutable_data<int64_t>(token_ids),
                                   mutable_data<float>(peaks));
  };
  if (panels.scalar_type() == at::kByte) {
    find.template operator()<TwelveBitStep>();
  } else {
    find.template operator()<BFloat16>();
  }
  return {token_ids, peaks};
}

}  // namespace headrace::operators

TORCH_LIBRARY_FRAGMENT(HEADRACE_NAMESPACE, library) {
  library.def(
      "likeliest_of_head(Tensor x, Tensor panels, Tensor screen, Tensor scales, Tensor errors, float norm) -> "
      "(Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(HEADRACE_NAMESPACE, CPU, library) {
  library.impl("likeliest_of_head", &headrace::operators::likeliest_of_head);
}

#endif
