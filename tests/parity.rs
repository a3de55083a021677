//! Parity with the tools in use today, by the golden vectors that they made (`tests/golden/README.md`).
//!
//! One test for each folder; all its cases run, and everything that differs is listed at once.

#[path = "parity/adapter.rs"]
mod adapter;
mod golden_data;
#[path = "parity/model.rs"]
mod model;
#[path = "parity/optim.rs"]
mod optim;

use golden_data::{Differences, Golden, Tensor};
use llamantino::export::quantize_folder;
use llamantino::model::{Checkpoint, ModelConfig};
use llamantino::quant::double::{double_quantize, double_quantize_around, dynamic_map_signed_8bit};
use llamantino::quant::file::stored_parts;
use llamantino::quant::nf4::NF4_CODE;
use llamantino::quant::{quantize, Nf4Matrix, QuantConfig, Scales, Values};
use safetensors::tensor::Dtype;

#[test]
fn nf4() {
    let golden = Golden::load("nf4/nf4_cases");
    let mut differences = Differences::default();
    differences.bits("nf4_code", &golden.tensor("nf4_code").f32(), &NF4_CODE);
    let map = golden.tensor("dynamic_map_signed_8bit").f32();
    differences.bits("dynamic_map_signed_8bit", &map, dynamic_map_signed_8bit());
    for case in golden.meta["cases"].as_array().unwrap() {
        nf4_case(&golden, case, &mut differences);
    }
    differences.finish("nf4");
}

/// Single and double quantisation of one input with one block size.
fn nf4_case(golden: &Golden, case: &serde_json::Value, differences: &mut Differences) {
    let key = case["key"].as_str().unwrap();
    let input = golden.tensor(case["input"].as_str().unwrap());
    let stored = |part: &str| golden.tensor(&format!("{key}.{part}"));
    let config = |double| QuantConfig { block: case["blocksize"].as_u64().unwrap() as usize, double };

    let single = quantized(input, config(false));
    let absmax = stored("absmax").f32();
    differences.bytes(&format!("{key}.packed"), &stored("packed").bytes, &single.codes);
    differences.bits(&format!("{key}.absmax"), &absmax, &scales_of(&single));
    differences.bits(&format!("{key}.dequant"), &stored("dequant").f32(), &dequantized(&single));

    // The mean of the scales is a sum in an order of torch's own: its last bits are free, everything after it is not.
    let double = quantized(input, config(true));
    let offset = stored("dq.offset").f32()[0];
    let Scales::Double { offset: mean, .. } = double_quantize(&absmax) else { panic!("{key}: not doubly quantised") };
    differences.ulps(&format!("{key}.dq.offset"), offset, mean, 4);
    differences.bytes(&format!("{key}.packed (double)"), &stored("packed").bytes, &double.codes);
    let double = Nf4Matrix { scales: double_quantize_around(&absmax, offset), ..double };
    let Scales::Double { codes, nested_absmax, .. } = &double.scales else { panic!("{key}: not doubly quantised") };
    differences.bytes(&format!("{key}.dq.absmax_codes"), &stored("dq.absmax_codes").bytes, codes);
    differences.bits(&format!("{key}.dq.nested_absmax"), &stored("dq.nested_absmax").f32(), nested_absmax);
    differences.bits(&format!("{key}.dq.absmax_restored"), &stored("dq.absmax_restored").f32(), &scales_of(&double));
    differences.bits(&format!("{key}.dq.dequant"), &stored("dq.dequant").f32(), &dequantized(&double));
}

fn quantized(input: &Tensor, config: QuantConfig) -> Nf4Matrix {
    let (rows, cols) = (input.shape[0], input.shape[1]);
    let result = match input.dtype {
        Dtype::F32 => quantize(Values::F32(&input.f32()), rows, cols, config),
        Dtype::F16 => quantize(Values::F16(&input.u16()), rows, cols, config),
        Dtype::BF16 => quantize(Values::Bf16(&input.u16()), rows, cols, config),
        other => panic!("no such input: {other:?}"),
    };
    result.unwrap()
}

fn scales_of(matrix: &Nf4Matrix) -> Vec<f32> {
    (0..matrix.len().div_ceil(matrix.block)).map(|block| matrix.scale(block)).collect()
}

fn dequantized(matrix: &Nf4Matrix) -> Vec<f32> {
    let mut values = vec![0.0; matrix.len()];
    matrix.dequantize(&mut values);
    values
}

/// The NF4 folder that transformers wrote: read, dequantised and stored again.
#[test]
fn quantized_checkpoint() {
    let golden = Golden::load("qlora/qlora_forward");
    let folder = golden_data::folder().join("qlora/tiny_bnb4bit");
    assert!(ModelConfig::from_folder(&folder).unwrap().quantized);
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let stored = golden_data::tensors_of(&folder.join("model.safetensors"));
    let mut differences = Differences::default();
    for module in golden.meta["quantized_modules"].as_array().unwrap() {
        let name = format!("{}.weight", module.as_str().unwrap());
        let expected = golden.tensor(&format!("base_dequant.{name}"));
        let matrix = checkpoint.expect_nf4(&name, expected.shape[0], expected.shape[1]).unwrap();
        differences.bits(&name, &expected.f32(), &dequantized(&matrix));
        for (part, tensor) in stored_parts(&name, &matrix) {
            let same_shape = tensor.shape == stored[&part].shape;
            differences.check(same_shape, || format!("{part}: shape {:?}", tensor.shape));
            differences.bytes(&part, &stored[&part].bytes, &tensor.bytes);
        }
    }
    differences.finish("quantized_checkpoint");
}

/// Quantising the base gives the folder that transformers wrote, tensor for tensor.
#[test]
fn quantized_folder() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("nf4");
    let base = golden_data::folder().join("llama/tiny");
    quantize_folder(&base, &out, QuantConfig::default(), &mut |_, _, _| {}).unwrap();
    let golden = golden_data::folder().join("qlora/tiny_bnb4bit");
    let mut differences = Differences::default();
    let configs = [&golden, &out].map(|folder| ModelConfig::from_folder(folder).unwrap().raw);
    differences
        .check(configs[0] == configs[1], || format!("config.json: expected {}, found {}", configs[0], configs[1]));
    let expected = golden_data::tensors_of(&golden.join("model.safetensors"));
    let found = golden_data::tensors_of(&out.join("model.safetensors"));
    let names = [&expected, &found].map(|tensors| tensors.keys().collect::<Vec<_>>());
    differences.check(names[0] == names[1], || format!("names: expected {:?}, found {:?}", names[0], names[1]));
    let [theirs, ours] = [&golden, &out].map(|folder| Checkpoint::open(folder).unwrap());
    for name in found.keys().filter(|name| theirs.is_nf4(name)) {
        nf4_weight(name, [&theirs, &ours], &base, &mut differences);
    }
    // What does not hang on the mean of the scales is the same, byte for byte.
    for (name, tensor) in expected.iter().filter(|(name, _)| !depends_on_the_mean(name)) {
        let other = &found[name];
        differences.check((tensor.dtype, &tensor.shape) == (other.dtype, &other.shape), || format!("{name}: shape"));
        differences.bytes(name, &tensor.bytes, &other.bytes);
    }
    differences.finish("quantized_folder");
}

fn depends_on_the_mean(name: &str) -> bool {
    [".absmax", ".nested_absmax", "bitsandbytes__nf4"].iter().any(|end| name.ends_with(end))
}

/// The scales: offsets a few ulp apart, and everything equal where they are the same.
fn nf4_weight(name: &str, checkpoints: [&Checkpoint; 2], base: &std::path::Path, differences: &mut Differences) {
    let source = Checkpoint::open(base).unwrap().get(name).unwrap();
    let [theirs, ours] = checkpoints.map(|c| c.expect_nf4(name, source.shape[0], source.shape[1]).unwrap());
    let single = QuantConfig { block: 64, double: false };
    let absmax = scales_of(&quantize(source.values().unwrap(), theirs.rows, theirs.cols, single).unwrap());
    let offset = |matrix: &Nf4Matrix| match matrix.scales {
        Scales::Double { offset, .. } => offset,
        Scales::Plain(_) => f32::NAN,
    };
    differences.ulps(&format!("{name}: offset"), offset(&theirs), offset(&ours), 4);
    let ours = match offset(&theirs) == offset(&ours) {
        true => ours,
        false => Nf4Matrix { scales: double_quantize_around(&absmax, offset(&theirs)), ..ours },
    };
    for ((part, expected), (_, found)) in stored_parts(name, &theirs).iter().zip(stored_parts(name, &ours)) {
        differences.bytes(part, &expected.bytes, &found.bytes);
    }
}
