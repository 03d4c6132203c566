// The operators as torch sees them: schemas, checks of what would otherwise read or write past a tensor, and types.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <torch/library.h>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "attention.h"
#include "linear.h"
#include "operator_checks.h"
#include "panel_tensor.h"
#include "rows.h"
#include "sampling.h"
#include "threads.h"
#include "token_mask.h"

namespace headrace::operators {

void check_norm(const Tensor& x, const Tensor& weight) {
  check_contiguous(x, "x");
  check_contiguous(weight, "weight");
  check_like(weight, x, "weight");
  TORCH_CHECK(x.dim() == 2 && weight.numel() == x.size(1), "x must be [token, hidden] and weight [hidden]");
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double epsilon) {
  check_norm(x, weight);
  Tensor output = at::empty_like(x);
  with_type(x, [&]<typename T>() {
    headrace::rms_norm(data<T>(x), data<T>(weight), static_cast<float>(epsilon), x.size(0), x.size(1),
                       mutable_data<T>(output));
  });
  return output;
}

void add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, double epsilon) {
  check_norm(x, weight);
  check_contiguous(residual, "residual");
  check_like(residual, x, "residual");
  TORCH_CHECK(residual.sizes() == x.sizes(), "residual must be as large as x");
  with_type(x, [&]<typename T>() {
    headrace::add_rms_norm(mutable_data<T>(x), mutable_data<T>(residual), data<T>(weight), static_cast<float>(epsilon),
                           x.size(0), x.size(1));
  });
}

Tensor silu_mul(const Tensor& gate_up) {
  check_contiguous(gate_up, "gate_up");
  TORCH_CHECK(gate_up.dim() == 2 && gate_up.size(1) % 2 == 0, "gate_up must be [token, 2 * inner]");
  Tensor output = at::empty({gate_up.size(0), gate_up.size(1) / 2}, gate_up.options());
  with_type(gate_up, [&]<typename T>() {
    headrace::silu_mul(data<T>(gate_up), gate_up.size(0), output.size(1), mutable_data<T>(output));
  });
  return output;
}

void check_heads(const Tensor& tensor, const Tensor& cache, int64_t token_count, const char* name) {
  check_like(tensor, cache, name);
  TORCH_CHECK(tensor.dim() == 3 && tensor.size(0) == token_count && tensor.size(2) == cache.size(3) &&
                  tensor.stride(2) == 1 && (tensor.size(1) == 1 || tensor.stride(1) == tensor.size(2)),
              name, " must be [token, head, head_dim] with whole heads");
}

Tensor rotary_and_write_kv(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& positions,
                           const Tensor& cos_sin, const Tensor& key_cache, const Tensor& value_cache,
                           const Tensor& slot_ids) {
  const int64_t token_count = query.size(0);
  check_caches(key_cache, value_cache);
  check_heads(query, key_cache, token_count, "query");
  check_heads(key, key_cache, token_count, "key");
  check_heads(value, key_cache, token_count, "value");
  TORCH_CHECK(key.size(1) == key_cache.size(1) && value.size(1) == key_cache.size(1), "key and value must be [token, ",
              key_cache.size(1), ", head_dim]");
  check_rotation(cos_sin, query.size(2));
  check_column(positions, at::kLong, token_count, "positions");
  check_column(slot_ids, at::kLong, token_count, "slot_ids");
  check_range(data<int64_t>(positions), token_count, cos_sin.size(0), "positions");
  check_range(data<int64_t>(slot_ids), token_count, key_cache.size(0) * key_cache.size(2), "slot_ids");
  const RotaryShape shape = {
      token_count,       query.size(1),   key.size(1),   query.size(2),   cos_sin.size(1),
      key_cache.size(2), query.stride(0), key.stride(0), value.stride(0), query.size(1) * query.size(2)};
  Tensor rotated = at::empty(query.sizes(), query.options());
  with_type(query, [&]<typename T>() {
    headrace::rotary_and_write_kv<T>(
        {data<T>(query), data<T>(key), data<T>(value), data<int64_t>(positions), data<float>(cos_sin),
         data<int64_t>(slot_ids), mutable_data<T>(key_cache), mutable_data<T>(value_cache), mutable_data<T>(rotated)},
        shape);
  });
  return rotated;
}

Tensor paged_attention(const Tensor& query, const Tensor& key_cache, const Tensor& value_cache,
                       const Tensor& block_tables, const Tensor& query_starts, const Tensor& context_lengths,
                       double scale) {
  check_caches(key_cache, value_cache);
  check_contiguous(query, "query");
  check_heads(query, key_cache, query.size(0), "query");
  TORCH_CHECK(query.size(1) % key_cache.size(1) == 0, query.size(1), " heads cannot share ", key_cache.size(1));
  check_tables(query.size(0), key_cache, block_tables, query_starts, context_lengths);
  const AttentionShape shape = {
      block_tables.size(0), query.size(1),          key_cache.size(1), query.size(2),
      key_cache.size(2),    block_tables.stride(0), query.stride(0),   static_cast<float>(scale)};
  Tensor output = at::empty_like(query);
  with_type(query, [&]<typename T>() {
    headrace::paged_attention<T>({data<T>(query), data<T>(key_cache), data<T>(value_cache), data<int32_t>(block_tables),
                                  data<int32_t>(query_starts), data<int32_t>(context_lengths), mutable_data<T>(output)},
                                 shape);
  });
  return output;
}

Tensor pack_blocks(const Tensor& values, const Tensor& scales, const std::optional<Tensor>& minima, bool is_gated) {
  TORCH_CHECK(values.dim() == 2 && values.size(1) % kPanelDepth == 0, "values must be [out, in], in a multiple of 32");
  TORCH_CHECK(!is_gated || values.size(0) % 2 == 0, "a gated weight has as many gates as outputs");
  const int64_t block_count = values.numel() / kPanelDepth;
  check_column(scales, at::kHalf, block_count, "scales");
  if (minima) check_column(*minima, at::kHalf, block_count, "minima");
  const LinearShape shape = {0, 0, values.size(1), values.size(0), is_gated};
  const auto pack = [&]<typename W, typename V>() {
    check_column(values, kStoredType<V>, values.numel(), "values");
    Tensor panels = allocate_panels(packed_size<W>(shape) * sizeof(W), values.options().dtype(at::kByte));
    headrace::pack_blocks(data<V>(values), data<uint16_t>(scales), minima ? data<uint16_t>(*minima) : nullptr, shape,
                          static_cast<W*>(panels.mutable_data_ptr()));
    return panels;
  };
  if (minima) return pack.template operator()<FourBitStep, uint8_t>();
  return pack.template operator()<EightBitStep, int8_t>();
}

LinearShape packed_shape(const Tensor& weight, bool is_gated) {
  TORCH_CHECK(weight.dim() == 2 && weight.stride(1) == 1, "weight must be [out, in] with whole rows");
  TORCH_CHECK(!is_gated || weight.size(0) % 2 == 0, "a gated weight has as many gates as outputs");
  return {0, 0, weight.size(1), weight.size(0), is_gated};
}

Tensor pack_weight(const Tensor& weight, bool is_gated) {
  const LinearShape shape = packed_shape(weight, is_gated);
  // Of every type that is packed as it is, a panel has as many elements.
  Tensor panels = allocate_panels(packed_size<float>(shape), weight.options());
  with_type(weight, [&]<typename T>() {
    headrace::pack_weight(data<T>(weight), weight.stride(0), shape, mutable_data<T>(panels));
  });
  return panels;
}

// Packs 8-bit integers for inputs of a type.
Tensor pack_integers(const Tensor& values, bool is_gated, at::ScalarType input_type) {
  const LinearShape shape = packed_shape(values, is_gated);
  TORCH_CHECK(values.scalar_type() == at::kChar, "values must be int8");
  const auto pack = [&]<typename W>() {
    if constexpr (std::is_same_v<W, TileByte>)
      TORCH_CHECK(shape.in_count <= kTileByteDepth, "values must be at most ", kTileByteDepth, " wide, not ",
                  shape.in_count);
    Tensor panels = allocate_panels(packed_size<W>(shape), values.options());
    headrace::pack_weight(data<W>(values), values.stride(0), shape, mutable_data<W>(panels));
    return panels;
  };
  if (input_type == at::kFloat) return pack.template operator()<IntegersFor<float>::Type>();
  TORCH_CHECK(input_type == at::kBFloat16, "inputs are float32 or bfloat16, not ", input_type);
  return pack.template operator()<IntegersFor<BFloat16>::Type>();
}

// Returns nothing where the weights differ too much for twelve bits.
std::optional<Tensor> pack_twelve_bits(const Tensor& weight, bool is_gated) {
  const LinearShape shape = packed_shape(weight, is_gated);
  TORCH_CHECK(weight.scalar_type() == at::kBFloat16, "weight must be bfloat16");
  Tensor panels =
      allocate_panels(packed_size<TwelveBitStep>(shape) * sizeof(TwelveBitStep), weight.options().dtype(at::kByte));
  const bool fits = headrace::pack_twelve_bits(data<BFloat16>(weight), weight.stride(0), shape,
                                               static_cast<TwelveBitStep*>(panels.mutable_data_ptr()));
  if (!fits) return std::nullopt;
  return panels;
}

Tensor expand_twelve_bits(const Tensor& panels) {
  constexpr auto kStepBytes = static_cast<int64_t>(sizeof(TwelveBitStep));
  check_column(panels, at::kByte, panels.numel() / kStepBytes * kStepBytes, "panels");
  const int64_t step_count = panels.numel() / kStepBytes;
  Tensor plain = allocate_panels(step_count * kStepWeights, panels.options().dtype(at::kBFloat16));
  headrace::expand_twelve_bits(data<TwelveBitStep>(panels), step_count, mutable_data<BFloat16>(plain));
  return plain;
}

Tensor linear(const Tensor& x, const Tensor& panels, const std::optional<Tensor>& scales,
              const std::optional<Tensor>& bias, int64_t out_count, bool is_gated, const std::optional<Tensor>& added) {
  TORCH_CHECK(x.dim() == 2 && x.stride(1) == 1, "x must be [token, in] with whole rows");
  const LinearShape shape = {x.size(0), x.stride(0), x.size(1), out_count, is_gated};
  if (scales) check_column(*scales, at::kFloat, out_count, "scales");
  if (bias) check_column(*bias, x.scalar_type(), out_count, "bias");
  if (added) check_column(*added, at::kFloat, x.size(0) * out_count, "added");
  const float* added_data = added ? data<float>(*added) : nullptr;
  Tensor output = at::empty({x.size(0), shape.output_width()}, x.options());
  with_type(x, [&]<typename T>() {
    const T* addends = bias ? data<T>(*bias) : nullptr;
    with_weight_type<T>(panels, shape, [&]<typename W>() {
      check_panels<W>(panels, shape);
      TORCH_CHECK((kStoredType<W> == at::kChar) == scales.has_value(), "8-bit integers, and nothing else, have scales");
      const float* factors = scales ? data<float>(*scales) : nullptr;
      headrace::linear<T, W>({data<T>(x), data<W>(panels), factors, addends, mutable_data<T>(output), added_data},
                             shape);
    });
  });
  return output;
}

void check_logits(const Tensor& logits) {
  TORCH_CHECK(logits.dim() == 2 && logits.size(1) > 0, "logits must be [row, vocabulary]");
}

std::tuple<Tensor, Tensor> likeliest(const Tensor& logits) {
  check_logits(logits);
  const Tensor whole = logits.contiguous();
  Tensor token_ids = at::empty({logits.size(0)}, logits.options().dtype(at::kLong));
  Tensor peaks = at::empty({logits.size(0)}, logits.options().dtype(at::kFloat));
  with_type(whole, [&]<typename T>() {
    headrace::likeliest(data<T>(whole), whole.size(0), whole.size(1), mutable_data<int64_t>(token_ids),
                        mutable_data<float>(peaks));
  });
  return {token_ids, peaks};
}

Tensor keep_allowed(const Tensor& logits, const Tensor& rows, const Tensor& allowed) {
  check_logits(logits);
  check_contiguous(logits, "logits");
  const int64_t mask_count = rows.numel();
  check_column(rows, at::kLong, mask_count, "rows");
  check_range(data<int64_t>(rows), mask_count, logits.size(0), "rows");
  TORCH_CHECK(allowed.dim() == 2 && allowed.size(0) == mask_count && allowed.size(1) * 32 >= logits.size(1),
              "allowed must be [mask, word] with a bit for each token");
  check_column(allowed, at::kInt, allowed.numel(), "allowed");
  Tensor peaks = at::empty({mask_count}, logits.options().dtype(at::kFloat));
  const TokenMasks masks = {data<int64_t>(rows), data<int32_t>(allowed), mask_count, allowed.size(1)};
  with_type(logits, [&]<typename T>() {
    headrace::keep_allowed(mutable_data<T>(logits), logits.size(1), masks, mutable_data<float>(peaks));
  });
  return peaks;
}

Tensor sample(const Tensor& logits, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p,
              const Tensor& seeds, const Tensor& positions) {
  check_logits(logits);
  const Tensor whole = logits.contiguous();
  const int64_t row_count = logits.size(0);
  check_column(temperature, at::kFloat, row_count, "temperature");
  check_column(top_k, at::kLong, row_count, "top_k");
  check_column(top_p, at::kFloat, row_count, "top_p");
  check_column(seeds, at::kLong, row_count, "seeds");
  check_column(positions, at::kLong, row_count, "positions");
  const SamplingColumns columns = {data<float>(temperature), data<int64_t>(top_k), data<float>(top_p),
                                   data<int64_t>(seeds), data<int64_t>(positions)};
  Tensor token_ids = at::empty({row_count}, logits.options().dtype(at::kLong));
  with_type(whole, [&]<typename T>() {
    headrace::sample(data<T>(whole), row_count, whole.size(1), columns, mutable_data<int64_t>(token_ids));
  });
  return token_ids;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> logprobs(const Tensor& logits, const Tensor& token_ids, int64_t top_count) {
  check_logits(logits);
  const Tensor whole = logits.contiguous();
  const int64_t row_count = logits.size(0);
  check_column(token_ids, at::kLong, row_count, "token_ids");
  check_range(data<int64_t>(token_ids), row_count, logits.size(1), "token_ids");
  TORCH_CHECK(top_count >= 0 && top_count <= logits.size(1), "top_count must be in [0, ", logits.size(1), "]");
  const auto integers = logits.options().dtype(at::kLong);
  const auto floats = logits.options().dtype(at::kFloat);
  Tensor chosen = at::empty({row_count}, floats);
  Tensor ranks = at::empty({row_count}, integers);
  Tensor top_ids = at::empty({row_count, top_count}, integers);
  Tensor top_logprobs = at::empty({row_count, top_count}, floats);
  const LogprobResults results = {mutable_data<float>(chosen), mutable_data<int64_t>(ranks),
                                  mutable_data<int64_t>(top_ids), mutable_data<float>(top_logprobs)};
  with_type(whole, [&]<typename T>() {
    headrace::logprobs(data<T>(whole), row_count, whole.size(1), data<int64_t>(token_ids), top_count, results);
  });
  return {chosen, ranks, top_ids, top_logprobs};
}

// Linux gives tile registers only to processes that ask for them; returns whether it did.
bool request_tiles() {
#if defined(__linux__) && defined(__x86_64__)
  constexpr long kRequestPermission = 0x1023;
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// Returns the ids by which Linux knows the threads of the calling thread's pool, its own first; none elsewhere.
std::vector<int64_t> thread_ids() {
#if defined(__linux__)
  std::vector<int64_t> ids(headrace::max_thread_count());
  headrace::parallel_shares(ids.size(), ids.size(), [&](Share share) {
    for (int64_t thread = share.begin; thread < share.end; ++thread) ids[thread] = syscall(SYS_gettid);
  });
  return ids;
#else
  return {};
#endif
}

}  // namespace headrace::operators

TORCH_LIBRARY_FRAGMENT(HEADRACE_NAMESPACE, library) {
  library.def("request_tiles() -> bool", &headrace::operators::request_tiles);
  library.def("thread_ids() -> int[]", &headrace::operators::thread_ids);
  library.def("rms_norm(Tensor x, Tensor weight, float epsilon) -> Tensor");
  library.def("add_rms_norm(Tensor(a!) x, Tensor(b!) residual, Tensor weight, float epsilon) -> ()");
  library.def("silu_mul(Tensor gate_up) -> Tensor");
  library.def(
      "rotary_and_write_kv(Tensor query, Tensor key, Tensor value, Tensor positions, Tensor cos_sin, "
      "Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor slot_ids) -> Tensor");
  library.def(
      "paged_attention(Tensor query, Tensor key_cache, Tensor value_cache, Tensor block_tables, Tensor query_starts, "
      "Tensor context_lengths, float scale) -> Tensor");
  library.def("pack_weight(Tensor weight, bool is_gated) -> Tensor");
  library.def("pack_integers(Tensor values, bool is_gated, ScalarType input_type) -> Tensor");
  library.def("pack_twelve_bits(Tensor weight, bool is_gated) -> Tensor?");
  library.def("expand_twelve_bits(Tensor panels) -> Tensor");
  library.def("pack_blocks(Tensor values, Tensor scales, Tensor? minima, bool is_gated) -> Tensor");
  library.def(
      "linear(Tensor x, Tensor panels, Tensor? scales, Tensor? bias, int out_count, bool is_gated, "
      "Tensor? added=None) -> Tensor");
  library.def("likeliest(Tensor logits) -> (Tensor, Tensor)");
  library.def("keep_allowed(Tensor(a!) logits, Tensor rows, Tensor allowed) -> Tensor");
  library.def(
      "sample(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor seeds, Tensor positions) -> "
      "Tensor");
  library.def("logprobs(Tensor logits, Tensor token_ids, int top_count) -> (Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(HEADRACE_NAMESPACE, CPU, library) {
  library.impl("rms_norm", &headrace::operators::rms_norm);
  library.impl("add_rms_norm", &headrace::operators::add_rms_norm);
  library.impl("silu_mul", &headrace::operators::silu_mul);
  library.impl("rotary_and_write_kv", &headrace::operators::rotary_and_write_kv);
  library.impl("paged_attention", &headrace::operators::paged_attention);
  library.impl("pack_weight", &headrace::operators::pack_weight);
  library.impl("pack_integers", &headrace::operators::pack_integers);
  library.impl("pack_twelve_bits", &headrace::operators::pack_twelve_bits);
  library.impl("expand_twelve_bits", &headrace::operators::expand_twelve_bits);
  library.impl("pack_blocks", &headrace::operators::pack_blocks);
  library.impl("linear", &headrace::operators::linear);
  library.impl("likeliest", &headrace::operators::likeliest);
  library.impl("keep_allowed", &headrace::operators::keep_allowed);
  library.impl("sample", &headrace::operators::sample);
  library.impl("logprobs", &headrace::operators::logprobs);
}
