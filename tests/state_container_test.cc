// Packed slots (docs/format.md 10): a slot file comes back to the byte; what is torn, changed or foreign is refused.
#include "state_container.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "api/engine_encode.h"
#include "format/half.h"
#include "format/state_row.h"
#include "slot_file.h"
#include "test_support.h"

namespace {

using kvt::cli::ContainerError;
using Bytes = std::vector<uint8_t>;

constexpr unsigned kHeadDim = 64, kHeads = 2, kValues = kHeadDim * kHeads;

template <typename T>
void put(Bytes* to, T value) {
  for (size_t i = 0; i < sizeof value; ++i) to->push_back(static_cast<uint8_t>(static_cast<uint64_t>(value) >> 8 * i));
}

// Rows of one layer as the plug-in saves them; every `raw_every`th is an exact one.
void put_rows(Bytes* to, kvt_codec_id id, kvt_side side, size_t n_rows, size_t raw_every, uint64_t seed) {
  const kvt_test::CodecPtr codec = kvt_test::make_codec(id, kHeadDim, kHeadDim);
  const kvt::StateRowShape shape(kvt::make_side_layout(id, side, kHeadDim), kHeads);
  Bytes conditioning(shape.conditioning_bytes());
  for (size_t i = 0; i < kValues; ++i) {
    conditioning[i] = static_cast<uint8_t>(kvt_test::splitmix64(seed, i));
    conditioning[kValues + 4 * kHeads + 2 * i + 1] = static_cast<uint8_t>(0x38 + i % 8);  // 0.5 .. 2
  }
  const float unit = 0.01f;
  for (unsigned head = 0; head < kHeads; ++head) std::memcpy(conditioning.data() + kValues + 4 * head, &unit, 4);
  for (size_t r = 0; r < n_rows; ++r) {
    const std::vector<float> row = kvt_test::gaussian_rows(seed + r, kHeads, kHeadDim);
    std::vector<uint16_t> halves(kValues);
    for (size_t i = 0; i < kValues; ++i) halves[i] = kvt::float_to_half(row[i]);
    if (r % raw_every != 0) {
      const Bytes page = kvt_test::encode_rows(codec.get(), side, row, kHeadDim);
      const std::vector<float> values = kvt_test::decode_rows(codec.get(), side, page, kHeads, kHeadDim);
      kvt::StateRow state;
      state.codes.resize(kValues);
      state.norms.resize(shape.n_norms());
      state.piece_bytes.assign(shape.piece_bytes(), 0);
      for (unsigned head = 0; head < kHeads; ++head) {
        kvt_internal::read_cell(codec.get(), side, page.data(), page.size(), head, state.codes.data() + head * kHeadDim,
                                state.norms.data() + size_t{head} * shape.norms_per_head);
      }
      if (side == KVT_KEY) {
        state.conditioning = kvt::conditioning_digest(conditioning.data(), conditioning.size());
        state.piece = static_cast<uint8_t>(r % shape.n_pieces());
        kvt::cut_piece(shape, conditioning.data(), state.piece, state.piece_bytes.data());
      }
      for (size_t i = 0; i < kValues; ++i) {
        float value = values[i];
        if (side == KVT_KEY) {
          const uint16_t scale = static_cast<uint16_t>(conditioning[kValues + 4 * kHeads + 2 * i + 1] << 8);
          value = value * kvt::half_to_float(scale) + unit * static_cast<float>(static_cast<int8_t>(conditioning[i]));
        }
        halves[i] = kvt::float_to_half(value);
      }
      kvt::hide_state_row(shape, state, halves.data());
    }
    const auto* p = reinterpret_cast<const uint8_t*>(halves.data());
    to->insert(to->end(), p, p + 2 * halves.size());
  }
}

// A slot file of one cache with two layers, as llama_state_seq_save_file writes it.
Bytes slot_file(kvt_codec_id id, uint32_t n_cells, size_t raw_every) {
  Bytes file;
  for (const uint32_t x : {0x67677371u, 4u, 3u, 11u, 12u, 13u}) put(&file, x);  // magic, version, three tokens
  put(&file, uint32_t{1});                                                      // streams
  put(&file, n_cells);
  for (uint32_t cell = 0; cell < n_cells; ++cell) {
    for (const uint32_t x : {cell, 1u, 0u}) put(&file, x);  // position, one sequence: 0
  }
  for (const uint32_t x : {0u, 2u, 0u, 0u}) put(&file, x);  // not transposed, two layers, no rotation
  for (const kvt_side side : {KVT_KEY, KVT_VALUE}) {
    for (uint64_t layer = 0; layer < 2; ++layer) {
      put(&file, int32_t{1});
      put(&file, uint64_t{2 * kValues});
      put_rows(&file, id, side, n_cells, raw_every, 1000 * layer + static_cast<uint64_t>(side));
    }
  }
  return file;
}

Bytes pack(const Bytes& file, kvt::cli::PackFigures* figures = nullptr) {
  Bytes container(kvt::cli::kContainerHeaderBytes), chunks;
  const kvt::cli::PackFigures found = kvt::cli::pack_slot(
      file, 77, [&](std::span<const uint8_t> bytes) { chunks.insert(chunks.end(), bytes.begin(), bytes.end()); }, [](double) {},
      container.data());
  if (figures != nullptr) *figures = found;
  container.insert(container.end(), chunks.begin(), chunks.end());
  return container;
}

Bytes unpack(const Bytes& container, bool plain = false) {
  Bytes file;
  kvt::cli::unpack_slot(container, {plain, false}, [&](std::span<const uint8_t> bytes) { file.insert(file.end(), bytes.begin(), bytes.end()); },
                        [](double) {});
  return file;
}

TEST(StateContainer, ComesBackToTheByte) {
  for (const kvt_codec_id id : kvt_test::kCodecs) {
    if (id == KVT_CODEC_F16) continue;
    const Bytes file = slot_file(id, 150, 20);
    kvt::cli::PackFigures figures;
    const Bytes container = pack(file, &figures);
    EXPECT_EQ(unpack(container), file) << id;
    EXPECT_EQ(figures.rows, 600u);
    EXPECT_EQ(figures.rows_as_codes, 600u - 4 * 8);
    EXPECT_LT(container.size() * 2, file.size()) << id;
    EXPECT_EQ(kvt::cli::read_container_header(container).model_hash, 77u);
    const Bytes plain = unpack(container, true);
    ASSERT_EQ(plain.size(), file.size());
    EXPECT_NE(plain, file);
  }
}

TEST(StateContainer, AnySlotComesBack) {
  Bytes file = slot_file(KVT_CODEC_K4V3, 150, 1);  // stock's rows only
  EXPECT_EQ(unpack(pack(file)), file);
  file = slot_file(KVT_CODEC_K4V3, 10, 100);  // too few rows for the conditioning
  EXPECT_EQ(unpack(pack(file)), file);
  file = slot_file(KVT_CODEC_K4V3, 150, 20);
  for (size_t i = 100; i < file.size(); i += 997) file[i] ^= 0x10;  // rows and counts that are not what they seem
  EXPECT_EQ(unpack(pack(file)), file);
  for (const size_t n : {24u, 25u, 40u, 3000u}) {
    const Bytes torn(file.begin(), file.begin() + static_cast<ptrdiff_t>(n));
    EXPECT_EQ(unpack(pack(torn)), torn) << n;
  }
  for (const size_t n : {0u, 3u, 4u, 11u, 23u}) {
    EXPECT_THROW(pack(Bytes(file.begin(), file.begin() + static_cast<ptrdiff_t>(n))), kvt::cli::SlotFileError) << n;
  }
  file[4] = 5;
  EXPECT_THROW(pack(file), kvt::cli::SlotFileError);
}

TEST(StateContainer, DamageIsRefused) {
  const Bytes container = pack(slot_file(KVT_CODEC_K4V3, 40, 7));
  for (size_t n = 0; n < container.size(); n += n < 100 ? 1 : 211) {
    EXPECT_THROW(unpack(Bytes(container.begin(), container.begin() + static_cast<ptrdiff_t>(n))), ContainerError) << n;
  }
  for (size_t i = 0; i < container.size(); i += i < 200 ? 1 : 101) {
    Bytes changed = container;
    changed[i] ^= static_cast<uint8_t>(1u << i % 8);
    EXPECT_THROW(unpack(changed), ContainerError) << i;
  }
}

// Seeds of fuzz/corpus/container: TEST_CORPUS=<folder> state_container_test --gtest_also_run_disabled_tests
TEST(StateContainer, DISABLED_WriteCorpus) {
  const auto write = [](const std::string& name, uint8_t mode, const Bytes& bytes) {
    std::ofstream out(std::string(std::getenv("TEST_CORPUS")) + "/" + name, std::ios::binary);
    out.put(static_cast<char>(mode));
    out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  };
  for (const kvt_codec_id id : {KVT_CODEC_HYBRID, KVT_CODEC_K4V3, KVT_CODEC_K8V4}) {
    const std::string name = kvt_codec_name(id);
    const Bytes file = slot_file(id, 6, 4);
    write("slot_" + name, 1, file);
    write("container_" + name, 0, pack(file));
  }
  write("slot_pieces", 1, slot_file(KVT_CODEC_K2V2, 50, 60));
  write("container_pieces", 0, pack(slot_file(KVT_CODEC_K2V2, 50, 60)));
}

}  // namespace
