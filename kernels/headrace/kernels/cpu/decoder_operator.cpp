// The layers of a decoder as one operator of torch.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "decoder.h"
#include "linear.h"
#include "low_rank_checks.h"
#include "operator_checks.h"

namespace headrace::operators {

// What is the same in every layer.
struct DecoderSizes {
  int64_t hidden;
  int64_t inner;
  int64_t heads;
  int64_t kv_heads;
  int64_t head;

  LinearShape linear(int64_t kind) const {
    switch (kind) {
      case kQueryKeyValueKind:
        return {0, 0, hidden, (heads + 2 * kv_heads) * head, false};
      case kAttentionOutputKind:
        return {0, 0, heads * head, hidden, false};
      case kGatedKind:
        return {0, 0, hidden, 2 * inner, true};
      default:
        return {0, 0, inner, hidden, false};
    }
  }

  // The outputs of the parts of a linear layer that adapters tell apart.
  std::vector<int64_t> parts(int64_t kind) const {
    switch (kind) {
      case kQueryKeyValueKind:
        return {heads * head, kv_heads * head, kv_heads * head};
      case kGatedKind:
        return {inner, inner};
      default:
        return {hidden};
    }
  }
};

// What is the same in every step that has adapters.
struct AdapterLists {
  const std::optional<Tensor>& token_adapters;
  at::TensorList downs;
  at::TensorList ups;
  at::IntArrayRef part_ranks;
};

template <typename T>
DecoderAdapters<T> collect_adapters(const AdapterLists& lists, int64_t token_count, int64_t layer_count,
                                    const DecoderSizes& sizes) {
  if (!lists.token_adapters) return {0, nullptr, {}};
  const auto product_count = static_cast<int64_t>(lists.downs.size());
  const int64_t count = product_count / (layer_count * kLinearKindCount);
  int64_t part_count = 0;
  for (int64_t kind = 0; kind < kLinearKindCount; ++kind) part_count += static_cast<int64_t>(sizes.parts(kind).size());
  TORCH_CHECK(product_count == count * layer_count * kLinearKindCount && lists.ups.size() == lists.downs.size() &&
                  static_cast<int64_t>(lists.part_ranks.size()) == count * layer_count * part_count,
              "the lists of adapters do not belong to one number of them");
  check_token_adapters(*lists.token_adapters, token_count, count);
  DecoderAdapters<T> adapters = {count, data<int64_t>(*lists.token_adapters), {}};
  int64_t first_rank = 0;
  for (int64_t index = 0; index < product_count; ++index) {
    const int64_t kind = index / count % kLinearKindCount;
    const std::vector<int64_t> parts = sizes.parts(kind);
    const at::IntArrayRef ranks = lists.part_ranks.slice(first_rank, parts.size());
    adapters.weights.push_back(
        check_low_rank<T>(lists.downs[index], lists.ups[index], ranks, parts, sizes.linear(kind).in_count));
    first_rank += static_cast<int64_t>(parts.size());
  }
  return adapters;
}

template <typename T, typename W>
std::vector<DecoderLayer<T, W>> collect_layers(at::TensorList norms, at::TensorList panels, at::TensorList scales,
                                               at::TensorList biases, at::TensorList caches,
                                               const DecoderSizes& sizes) {
  constexpr at::ScalarType kType = std::is_same_v<T, float> ? at::kFloat : at::kBFloat16;
  const auto layer_count = static_cast<int64_t>(caches.size()) / 2;
  for (const Tensor& norm : norms) check_column(norm, kType, sizes.hidden, "a norm");
  const auto weight = [&](int64_t layer, int64_t kind) {
    const int64_t index = layer * kLinearKindCount + kind;
    const LinearShape shape = sizes.linear(kind);
    check_panels<W>(panels[index], shape);
    PackedWeight<T, W> packed = {data<W>(panels[index]), nullptr, nullptr};
    if (!scales.empty()) {
      check_column(scales[index], at::kFloat, shape.out_count, "scales");
      packed.scales = data<float>(scales[index]);
    }
    // A layer without a bias has one without elements.
    if (!biases.empty() && biases[index].numel() > 0) {
      check_column(biases[index], kType, shape.out_count, "bias");
      packed.bias = data<T>(biases[index]);
    }
    return packed;
  };
  std::vector<DecoderLayer<T, W>> layers;
  for (int64_t layer = 0; layer < layer_count; ++layer) {
    const Tensor& keys = caches[2 * layer];
    const Tensor& values = caches[2 * layer + 1];
    check_caches(keys, values);
    TORCH_CHECK(keys.scalar_type() == kType && keys.sizes() == caches[0].sizes(), "the caches differ between layers");
    layers.push_back({data<T>(norms[1 + 2 * layer]), data<T>(norms[2 + 2 * layer]), weight(layer, kQueryKeyValueKind),
                      weight(layer, kAttentionOutputKind), weight(layer, kGatedKind), weight(layer, kDownKind),
                      mutable_data<T>(keys), mutable_data<T>(values)});
  }
  return layers;
}

Tensor decoder(const Tensor& residual, at::TensorList norms, at::TensorList panels, at::TensorList scales,
               at::TensorList biases, at::TensorList caches, const Tensor& cos_sin, const Tensor& positions,
               const Tensor& slot_ids, const Tensor& block_tables, const Tensor& query_starts,
               const Tensor& context_lengths, const Tensor& output_tokens, int64_t head_count, int64_t inner_size,
               double epsilon, double scale, const std::optional<Tensor>& token_adapters, at::TensorList downs,
               at::TensorList ups, at::IntArrayRef part_ranks) {
  check_contiguous(residual, "residual");
  TORCH_CHECK(residual.dim() == 2, "residual must be [token, hidden]");
  const auto layer_count = static_cast<int64_t>(caches.size()) / 2;
  TORCH_CHECK(layer_count > 0 && static_cast<int64_t>(norms.size()) == 1 + 2 * layer_count &&
                  static_cast<int64_t>(panels.size()) == kLinearKindCount * layer_count &&
                  (scales.empty() || scales.size() == panels.size()) &&
                  (biases.empty() || biases.size() == panels.size()),
              "the lists do not belong to one number of layers");
  const Tensor& keys = caches[0];
  check_caches(keys, caches[1]);
  const int64_t token_count = residual.size(0);
  const DecoderSizes sizes = {residual.size(1), inner_size, head_count, keys.size(1), keys.size(3)};
  check_rotation(cos_sin, sizes.head);
  check_column(positions, at::kLong, token_count, "positions");
  check_column(slot_ids, at::kLong, token_count, "slot_ids");
  check_column(output_tokens, at::kLong, output_tokens.numel(), "output_tokens");
  check_range(data<int64_t>(positions), token_count, cos_sin.size(0), "positions");
  check_range(data<int64_t>(slot_ids), token_count, keys.size(0) * keys.size(2), "slot_ids");
  check_range(data<int64_t>(output_tokens), output_tokens.numel(), token_count, "output_tokens");
  check_tables(token_count, keys, block_tables, query_starts, context_lengths);
  TORCH_CHECK(head_count % sizes.kv_heads == 0, head_count, " heads cannot share ", sizes.kv_heads);
  const DecoderShape shape = {token_count,
                              output_tokens.numel(),
                              sizes.hidden,
                              sizes.inner,
                              cos_sin.size(1),
                              static_cast<float>(epsilon),
                              {block_tables.size(0), head_count, sizes.kv_heads, sizes.head, keys.size(2),
                               block_tables.stride(0), 0, static_cast<float>(scale)}};
  TORCH_CHECK(can_decode(shape), "hidden, inner and head widths must be multiples of 32");
  Tensor output = at::empty({output_tokens.numel(), sizes.hidden}, residual.options());
  with_type(residual, [&]<typename T>() {
    const DecoderTensors<T> tensors = {mutable_data<T>(residual),    data<T>(norms[0]),
                                       data<float>(cos_sin),         data<int64_t>(positions),
                                       data<int64_t>(slot_ids),      data<int32_t>(block_tables),
                                       data<int32_t>(query_starts),  data<int32_t>(context_lengths),
                                       data<int64_t>(output_tokens), mutable_data<T>(output)};
    with_weight_type<T>(panels[0], sizes.linear(kQueryKeyValueKind), [&]<typename W>() {
      TORCH_CHECK((kStoredType<W> == at::kChar) != scales.empty(), "8-bit integers, and nothing else, have scales");
      decode(tensors, collect_layers<T, W>(norms, panels, scales, biases, caches, sizes),
             collect_adapters<T>({token_adapters, downs, ups, part_ranks}, token_count, layer_count, sizes), shape);
    });
  });
  return output;
}

}  // namespace headrace::operators

TORCH_LIBRARY_FRAGMENT(HEADRACE_NAMESPACE, library) {
  library.def(
      "decoder(Tensor(a!) residual, Tensor[] norms, Tensor[] panels, Tensor[] scales, Tensor[] biases, "
      "Tensor(b!)[] caches, Tensor cos_sin, Tensor positions, Tensor slot_ids, Tensor block_tables, "
      "Tensor query_starts, Tensor context_lengths, Tensor output_tokens, int head_count, int inner_size, "
      "float epsilon, float scale, Tensor? token_adapters, Tensor[] downs, Tensor[] ups, int[] part_ranks) -> Tensor");
}

TORCH_LIBRARY_IMPL(HEADRACE_NAMESPACE, CPU, library) { library.impl("decoder", &headrace::operators::decoder); }
