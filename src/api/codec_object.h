// What a kvt_codec is.
#ifndef KVT_API_CODEC_OBJECT_H
#define KVT_API_CODEC_OBJECT_H

#include "cpu/kernel_table.h"
#include "format/page_layout.h"
#include "kvturbo/kvturbo.h"

struct kvt_codec {
  kvt_codec_id id;
  kvt::SideLayout key;
  kvt::SideLayout value;
  const kvt::cpu::KernelTable* kernels;

  const kvt::SideLayout& layout(kvt_side side) const { return side == KVT_KEY ? key : value; }
};

#endif
