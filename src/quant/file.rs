//! The form of one 4-bit weight in a safetensors file, as transformers and bitsandbytes write and read it.
//!
//! | key after the weight's name | dtype, shape | what |
//! |---|---|---|
//! | | u8 `[ceil(n/2), 1]` | codes |
//! | `.absmax` | u8 `[blocks]`, or f32 without double quantisation | scales |
//! | `.nested_absmax` | f32 `[ceil(blocks/256)]` | scales of the scales |
//! | `.nested_quant_map` | f32 `[256]` | their codebook |
//! | `.quant_map` | f32 `[16]` | the NF4 codebook |
//! | `.quant_state.bitsandbytes__nf4` | u8 | JSON: block size, dtype, shape, nested block size, offset |
//!
//! Every shape, dtype and field is checked on reading; the bytes of a mapped file stay mapped.

use super::double::dynamic_map_signed_8bit;
use super::nf4::{Nf4Matrix, Scales, SourceDtype, NF4_CODE};
use super::quantize::{f32_bytes, QuantConfig, Values};
use crate::error::{Error, Result};
use crate::ops::bytes::Bytes;
use serde_json::{json, Map, Value};

/// dtype of a tensor in a weights file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoredDtype {
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// Bytes.
    U8,
}

impl StoredDtype {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            StoredDtype::F32 => 4,
            StoredDtype::F16 | StoredDtype::Bf16 => 2,
            StoredDtype::U8 => 1,
        }
    }

    /// The name in a safetensors header.
    pub fn name(self) -> &'static str {
        match self {
            StoredDtype::F32 => "F32",
            StoredDtype::F16 => "F16",
            StoredDtype::Bf16 => "BF16",
            StoredDtype::U8 => "U8",
        }
    }

    /// The floating-point type; none for bytes.
    pub fn float(self) -> Option<SourceDtype> {
        match self {
            StoredDtype::F32 => Some(SourceDtype::F32),
            StoredDtype::F16 => Some(SourceDtype::F16),
            StoredDtype::Bf16 => Some(SourceDtype::Bf16),
            StoredDtype::U8 => None,
        }
    }
}

impl From<SourceDtype> for StoredDtype {
    fn from(dtype: SourceDtype) -> StoredDtype {
        match dtype {
            SourceDtype::F32 => StoredDtype::F32,
            SourceDtype::F16 => StoredDtype::F16,
            SourceDtype::Bf16 => StoredDtype::Bf16,
        }
    }
}

/// A tensor as it lies in a file: row-major, little-endian. Invariant: the bytes are as many as dtype and shape say.
#[derive(Clone)]
pub struct RawTensor {
    /// Element type.
    pub dtype: StoredDtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Aligned for the dtype.
    pub bytes: Bytes,
}

impl RawTensor {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// The floating-point values; `None` for bytes.
    pub fn values(&self) -> Option<Values<'_>> {
        match self.dtype {
            StoredDtype::F32 => Some(Values::F32(self.bytes.as_f32())),
            StoredDtype::F16 => Some(Values::F16(self.bytes.as_u16())),
            StoredDtype::Bf16 => Some(Values::Bf16(self.bytes.as_u16())),
            StoredDtype::U8 => None,
        }
    }

    /// An error unless dtype and shape are these.
    pub fn check(&self, name: &str, dtype: StoredDtype, shape: &[usize]) -> Result<()> {
        if self.dtype == dtype && self.shape == shape {
            return Ok(());
        }
        Err(Error::failed(format!(
            "tensor {name}: expected {} {shape:?}, found {} {:?}",
            dtype.name(),
            self.dtype.name(),
            self.shape
        )))
    }
}

/// Looks a tensor up by name in whatever holds the checkpoint; `None` where there is no such tensor.
pub type Find<'a> = &'a dyn Fn(&str) -> Result<Option<RawTensor>>;

const STATE: &str = ".quant_state.bitsandbytes__nf4";
/// Endings of the tensors that belong to a 4-bit weight, after the name of the weight.
pub const PART_SUFFIXES: [&str; 5] = [".absmax", ".nested_absmax", ".nested_quant_map", ".quant_map", STATE];

/// Name of the tensor whose presence says that `weight` is stored in NF4.
pub fn state_key(weight: &str) -> String {
    format!("{weight}{STATE}")
}

/// Reads the 4-bit weight named `weight` (with its `.weight`).
///
/// Errors: a part is missing, has another dtype or shape, a JSON field is wrong, another 4-bit type, scales that are
/// not finite.
pub fn read_weight(weight: &str, find: Find<'_>) -> Result<Nf4Matrix> {
    let part = |suffix: &str| {
        let name = format!("{weight}{suffix}");
        find(&name)?.ok_or_else(|| Error::failed(format!("tensor {name} is missing")))
    };
    let state = match find(&state_key(weight))? {
        Some(state) => State::parse(&state).map_err(|e| e.at(state_key(weight)))?,
        None => return Err(no_state(weight, find)?),
    };
    let count = state.rows * state.cols;
    let codes = part("")?;
    // bitsandbytes may keep the bytes in words of another dtype (bnb_4bit_quant_storage): the bytes are the same.
    if codes.bytes.len() != count.div_ceil(2) {
        crate::bail!(
            "tensor {weight}: expected {} bytes for the {} x {} codes, found {}",
            count.div_ceil(2),
            state.rows,
            state.cols,
            codes.bytes.len()
        );
    }
    check_quant_map(weight, &part(".quant_map")?)?;
    let blocks = count.div_ceil(state.block);
    let absmax = part(".absmax")?;
    let absmax_name = format!("{weight}.absmax");
    let scales = match state.nested {
        None => {
            absmax.check(&absmax_name, StoredDtype::F32, &[blocks])?;
            check_finite(&absmax_name, absmax.bytes.as_f32())?;
            Scales::Plain(absmax.bytes)
        }
        Some(nested) => {
            absmax.check(&absmax_name, StoredDtype::U8, &[blocks])?;
            let nested_absmax = part(".nested_absmax")?;
            let name = format!("{weight}.nested_absmax");
            nested_absmax.check(&name, StoredDtype::F32, &[blocks.div_ceil(nested.block)])?;
            check_finite(&name, nested_absmax.bytes.as_f32())?;
            Scales::Double {
                codes: absmax.bytes,
                nested_absmax: nested_absmax.bytes.as_f32().to_vec(),
                map: nested_map(weight, &part(".nested_quant_map")?)?,
                offset: nested.offset,
                nested_block: nested.block,
            }
        }
    };
    Ok(Nf4Matrix {
        rows: state.rows,
        cols: state.cols,
        block: state.block,
        codes: codes.bytes,
        scales,
        dtype: state.dtype,
    })
}

/// Why a weight has no NF4 state.
fn no_state(weight: &str, find: Find<'_>) -> Result<Error> {
    if find(&format!("{weight}.quant_state.bitsandbytes__fp4"))?.is_some() {
        return Ok(Error::failed(format!("tensor {weight}: 4-bit type fp4, expected nf4"))
            .hint("quantize the original model with `llamantino quantize`, or with bnb_4bit_quant_type=\"nf4\""));
    }
    Ok(Error::failed(format!("tensor {} is missing", state_key(weight))))
}

fn check_quant_map(weight: &str, map: &RawTensor) -> Result<()> {
    let name = format!("{weight}.quant_map");
    map.check(&name, StoredDtype::F32, &[16])?;
    for (i, (found, expected)) in map.bytes.as_f32().iter().zip(NF4_CODE).enumerate() {
        if found.to_bits() != expected.to_bits() {
            crate::bail!("tensor {name}: entry {i}: expected {expected} as in NF4, found {found}");
        }
    }
    Ok(())
}

fn nested_map(weight: &str, map: &RawTensor) -> Result<Box<[f32; 256]>> {
    let name = format!("{weight}.nested_quant_map");
    map.check(&name, StoredDtype::F32, &[256])?;
    check_finite(&name, map.bytes.as_f32())?;
    let mut values = Box::new([0.0; 256]);
    values.copy_from_slice(map.bytes.as_f32());
    Ok(values)
}

fn check_finite(name: &str, values: &[f32]) -> Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        Some(i) => Err(Error::failed(format!("tensor {name}: entry {i} is {}, expected a finite value", values[i]))),
        None => Ok(()),
    }
}

/// The JSON of a quant state.
struct State {
    rows: usize,
    cols: usize,
    block: usize,
    dtype: SourceDtype,
    nested: Option<Nested>,
}

struct Nested {
    block: usize,
    offset: f32,
}

impl State {
    fn parse(tensor: &RawTensor) -> Result<State> {
        if tensor.dtype != StoredDtype::U8 || tensor.bytes.len() > 4096 {
            crate::bail!("expected at most 4096 bytes of JSON, found {} {:?}", tensor.dtype.name(), tensor.shape);
        }
        let fields: Map<String, Value> =
            serde_json::from_slice(&tensor.bytes).map_err(|e| Error::failed(format!("not a JSON object: {e}")))?;
        let kind = field(&fields, "quant_type", "\"nf4\"", Value::as_str)?;
        if kind != "nf4" {
            crate::bail!("quant_type: expected \"nf4\", found {kind:?}");
        }
        let block = whole(&fields, "blocksize")?;
        QuantConfig { block, double: true }
            .check()
            .map_err(|e| Error::failed(e.message().to_string()).at("blocksize"))?;
        let (rows, cols) = shape(&fields)?;
        let dtype = match field(&fields, "dtype", "a dtype name", Value::as_str)? {
            "float32" => SourceDtype::F32,
            "float16" => SourceDtype::F16,
            "bfloat16" => SourceDtype::Bf16,
            other => crate::bail!("dtype: expected float32, float16 or bfloat16, found {other:?}"),
        };
        let nested = ["nested_blocksize", "nested_dtype", "nested_offset"].iter().any(|key| fields.contains_key(*key));
        let nested = if nested { Some(Nested::parse(&fields)?) } else { None };
        Ok(State { rows, cols, block, dtype, nested })
    }
}

impl Nested {
    fn parse(fields: &Map<String, Value>) -> Result<Nested> {
        let dtype = field(fields, "nested_dtype", "\"float32\"", Value::as_str)?;
        if dtype != "float32" {
            crate::bail!("nested_dtype: expected \"float32\", found {dtype:?}");
        }
        let block = whole(fields, "nested_blocksize")?;
        let offset = field(fields, "nested_offset", "a number", Value::as_f64)? as f32;
        if !offset.is_finite() {
            crate::bail!("nested_offset: expected a finite f32, found {}", fields["nested_offset"]);
        }
        Ok(Nested { block, offset })
    }
}

fn field<'v, T>(
    fields: &'v Map<String, Value>,
    key: &str,
    expected: &str,
    read: impl Fn(&'v Value) -> Option<T>,
) -> Result<T> {
    let Some(value) = fields.get(key) else { crate::bail!("{key}: expected {expected}, found nothing") };
    read(value).ok_or_else(|| Error::failed(format!("{key}: expected {expected}, found {value}")))
}

fn whole(fields: &Map<String, Value>, key: &str) -> Result<usize> {
    let value = field(fields, key, "a whole number above 0", Value::as_u64)?;
    match usize::try_from(value) {
        Ok(value) if value > 0 => Ok(value),
        _ => Err(Error::failed(format!("{key}: expected a whole number above 0, found {value}"))),
    }
}

fn shape(fields: &Map<String, Value>) -> Result<(usize, usize)> {
    let dimensions = field(fields, "shape", "[rows, columns]", Value::as_array)?;
    let sizes: Vec<usize> =
        dimensions.iter().filter_map(|v| v.as_u64()).filter_map(|v| usize::try_from(v).ok()).collect();
    match (dimensions.len(), &sizes[..]) {
        (2, &[rows, cols]) if rows > 0 && cols > 0 && rows.checked_mul(cols).is_some() => Ok((rows, cols)),
        _ => Err(Error::failed(format!("shape: expected [rows, columns], found {}", fields["shape"]))),
    }
}

/// The tensors of a 4-bit weight with their names, in the order of the table above. Bytes are shared, not copied.
pub fn stored_parts(weight: &str, matrix: &Nf4Matrix) -> Vec<(String, RawTensor)> {
    let u8s = |bytes: &Bytes, shape: Vec<usize>| RawTensor { dtype: StoredDtype::U8, shape, bytes: bytes.clone() };
    let f32s =
        |values: &[f32]| RawTensor { dtype: StoredDtype::F32, shape: vec![values.len()], bytes: f32_bytes(values) };
    let mut parts = vec![("", u8s(&matrix.codes, vec![matrix.codes.len(), 1]))];
    match &matrix.scales {
        Scales::Plain(absmax) => {
            let absmax = RawTensor { dtype: StoredDtype::F32, shape: vec![absmax.len() / 4], bytes: absmax.clone() };
            parts.push((".absmax", absmax));
        }
        Scales::Double { codes, nested_absmax, map, .. } => {
            parts.push((".absmax", u8s(codes, vec![codes.len()])));
            parts.push((".nested_absmax", f32s(nested_absmax)));
            parts.push((".nested_quant_map", f32s(&map[..])));
        }
    }
    parts.push((".quant_map", f32s(&NF4_CODE)));
    let state = state_json(matrix);
    parts.push((STATE, u8s(&Bytes::owned(state.as_bytes()), vec![state.len()])));
    parts.into_iter().map(|(suffix, tensor)| (format!("{weight}{suffix}"), tensor)).collect()
}

/// Most bytes that the JSON of a quant state takes.
pub const STATE_BYTES: usize = 320;

/// Names, dtypes and shapes of [`stored_parts`] before there is a matrix. The JSON of the state, whose length depends
/// on the offset's digits, is given its upper bound [`STATE_BYTES`].
pub fn planned_parts(
    weight: &str,
    rows: usize,
    cols: usize,
    config: QuantConfig,
) -> Vec<(String, StoredDtype, Vec<usize>)> {
    let count = rows * cols;
    let blocks = count.div_ceil(config.block);
    let mut parts = vec![("", StoredDtype::U8, vec![count.div_ceil(2), 1])];
    if config.double {
        parts.push((".absmax", StoredDtype::U8, vec![blocks]));
        parts.push((".nested_absmax", StoredDtype::F32, vec![blocks.div_ceil(super::double::NESTED_BLOCK)]));
        parts.push((".nested_quant_map", StoredDtype::F32, vec![dynamic_map_signed_8bit().len()]));
    } else {
        parts.push((".absmax", StoredDtype::F32, vec![blocks]));
    }
    parts.push((".quant_map", StoredDtype::F32, vec![NF4_CODE.len()]));
    parts.push((STATE, StoredDtype::U8, vec![STATE_BYTES]));
    parts.into_iter().map(|(suffix, dtype, shape)| (format!("{weight}{suffix}"), dtype, shape)).collect()
}

/// The name that torch gives a dtype.
pub fn torch_name(dtype: SourceDtype) -> &'static str {
    match dtype {
        SourceDtype::F32 => "float32",
        SourceDtype::F16 => "float16",
        SourceDtype::Bf16 => "bfloat16",
    }
}

/// The JSON of a quant state, in the very spelling of Python's `json.dumps`.
fn state_json(matrix: &Nf4Matrix) -> String {
    let Nf4Matrix { rows, cols, block, dtype, .. } = matrix;
    let mut text = format!(
        "{{\"quant_type\": \"nf4\", \"blocksize\": {block}, \"dtype\": \"{}\", \"shape\": [{rows}, {cols}]",
        torch_name(*dtype)
    );
    if let Scales::Double { offset, nested_block, .. } = &matrix.scales {
        text += &format!(
            ", \"nested_blocksize\": {nested_block}, \"nested_dtype\": \"float32\", \"nested_offset\": {}",
            python_float(f64::from(*offset))
        );
    }
    text + "}"
}

/// A finite float as Python's `repr` writes it: shortest digits, an exponent below 1e-4 and from 1e16 on.
fn python_float(value: f64) -> String {
    let magnitude = value.abs();
    if value == 0.0 || (1e-4..1e16).contains(&magnitude) {
        return format!("{value:?}");
    }
    let scientific = format!("{value:e}");
    match scientific.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
            format!("{digits}e{sign}{exponent:0>2}")
        }
        None => scientific,
    }
}

/// `quantization_config` of a config.json whose linears are stored this way.
pub fn quantization_config(config: QuantConfig, compute: SourceDtype) -> Value {
    json!({
        "_load_in_4bit": true,
        "_load_in_8bit": false,
        "bnb_4bit_compute_dtype": torch_name(compute),
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": config.double,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": null,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": true,
        "load_in_8bit": false,
        "quant_method": "bitsandbytes"
    })
}

/// Checks the `quantization_config` of a config.json: bitsandbytes NF4, or an error that says what it is instead.
pub fn check_quantization_config(value: &Value) -> Result<()> {
    let hint = "start from the unquantized model, or from one quantized by `llamantino quantize` or bitsandbytes (nf4)";
    let expect = |key: &str, expected: Value, found: &Value| {
        if *found == expected {
            return Ok(());
        }
        Err(Error::failed(format!("quantization_config.{key}: expected {expected}, found {found}")).hint(hint))
    };
    let four_bits = if value["load_in_4bit"].is_null() { &value["_load_in_4bit"] } else { &value["load_in_4bit"] };
    let method = &value["quant_method"];
    // Files older than the field are bitsandbytes ones.
    if !(method.is_null() && four_bits == &json!(true)) {
        expect("quant_method", json!("bitsandbytes"), method)?;
    }
    expect("load_in_4bit", json!(true), four_bits)?;
    expect("bnb_4bit_quant_type", json!("nf4"), &value["bnb_4bit_quant_type"])
}
