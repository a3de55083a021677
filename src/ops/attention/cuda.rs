//! Attention on a GPU's tensor cores; see `attention.cu`.

use super::{check_segments, AttentionShape};
use crate::device::cuda::{Argument, Launch};
use crate::error::{Error, Result};
use crate::ops::gpu::{count, Buffer, Gpu, THREADS};
use half::bf16;
use std::ops::Range;

/// Rows of a tile; the kernels are written for it.
const TILE: usize = 64;
/// Rows of the other side in the backward pass.
const SMALL_TILE: usize = 32;
/// Threads of a tile's block.
const TILE_THREADS: u32 = 128;

/// Keys of a part of a cache, and threads of its block.
const PART_KEYS: usize = 128;

/// The kernels of one head size.
struct Kernels {
    head_dim: usize,
    forward: &'static str,
    query_gradients: &'static str,
    key_gradients: &'static str,
}

macro_rules! kernels {
    ($($head_dim:literal),*) => {
        [$(Kernels {
            head_dim: $head_dim,
            forward: concat!("attention_forward_", $head_dim),
            query_gradients: concat!("attention_query_gradients_", $head_dim),
            key_gradients: concat!("attention_key_gradients_", $head_dim),
        }),*]
    };
}
static KERNELS: [Kernels; 5] = kernels![16, 32, 64, 96, 128];

/// The packing of a micro-batch as the kernels read it: every document's rows in tiles of 64.
pub struct Tiles {
    tiles: Buffer<i32>,
    rows: usize,
}

impl Tiles {
    /// The tiles of documents `segments` among `rows` rows. Rows that belong to no document are not touched.
    pub fn new(gpu: &Gpu, segments: &[Range<usize>], rows: usize) -> Result<Tiles> {
        check_segments(segments, rows);
        count(rows)?;
        let of_segment = |segment: &Range<usize>| {
            let (start, end) = (segment.start as i32, segment.end as i32);
            segment.clone().step_by(TILE).map(move |first| [start, end, first as i32, 0])
        };
        // Long tiles first: a query tile far down its document has most keys to read.
        let mut tiles: Vec<[i32; 4]> = segments.iter().flat_map(of_segment).collect();
        tiles.sort_by_key(|[start, _, first, _]| std::cmp::Reverse(first - start));
        Ok(Tiles { tiles: gpu.upload(tiles.as_flattened(), tiles.len(), 4)?, rows })
    }

    /// New rows `past .. past + rows` of one document, whose keys and values from row 0 on are in a cache: only for the
    /// forward pass, where `q`, `out` and `lse` have the new rows alone.
    pub fn behind(gpu: &Gpu, past: usize, rows: usize) -> Result<Tiles> {
        let (past, end) = (count(past)? as i32, count(past + rows)? as i32);
        let tiles: Vec<[i32; 4]> = (past..end).step_by(TILE).rev().map(|first| [0, end, first, past]).collect();
        Ok(Tiles { tiles: gpu.upload(tiles.as_flattened(), tiles.len(), 4)?, rows })
    }

    fn launch(
        &self,
        kernel: &'static str,
        heads: usize,
        shared_rows: usize,
        head_dim: usize,
        arguments: &[Argument],
    ) -> Result<()> {
        // Rows are padded by 16 bytes; the backward pass keeps two floats of each small row as well.
        let shared_bytes = count(shared_rows * (head_dim + 8) * size_of::<bf16>() + 2 * SMALL_TILE * size_of::<f32>())?;
        let grid = [count(self.tiles.rows())?, count(heads)?];
        self.tiles.gpu().launch(&Launch { kernel, grid, threads: TILE_THREADS, shared_bytes, arguments })
    }
}

/// Refuses shapes without a kernel.
pub fn check_shape(shape: AttentionShape) -> Result<()> {
    kernels_of(shape).map(|_| ())
}

fn kernels_of(shape: AttentionShape) -> Result<&'static Kernels> {
    shape.check();
    KERNELS.iter().find(|kernels| kernels.head_dim == shape.head_dim).ok_or_else(|| {
        let known: Vec<String> = KERNELS.iter().map(|kernels| kernels.head_dim.to_string()).collect();
        Error::failed(format!(
            "heads of {} values: the GPU's attention has kernels for {}",
            shape.head_dim,
            known.join(", ")
        ))
        .hint("run this model with --device cpu")
    })
}

fn heads(shape: AttentionShape) -> Result<[Argument; 2]> {
    Ok([(count(shape.heads)? as i32).into(), (count(shape.kv_heads)? as i32).into()])
}

/// Inputs of attention: q `[T, heads · D]`, k and v `[T, kv_heads · D]`.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// Queries.
    pub q: &'a Buffer<bf16>,
    /// Keys.
    pub k: &'a Buffer<bf16>,
    /// Values.
    pub v: &'a Buffer<bf16>,
}

/// `out [T, heads · D]` and `lse [T, heads]`.
pub fn forward(
    shape: AttentionShape,
    inputs: Inputs<'_>,
    tiles: &Tiles,
    out: &Buffer<bf16>,
    lse: &Buffer<f32>,
) -> Result<()> {
    let kernels = kernels_of(shape)?;
    assert!(inputs.q.rows() == tiles.rows && lse.len() == tiles.rows * shape.heads);
    let [heads, kv_heads] = heads(shape)?;
    let Inputs { q, k, v } = inputs;
    let scale = shape.scale().into();
    let arguments = [
        q.pointer(),
        k.pointer(),
        v.pointer(),
        out.pointer(),
        lse.pointer(),
        tiles.tiles.pointer(),
        heads,
        kv_heads,
        scale,
    ];
    tiles.launch(kernels.forward, shape.heads, 2 * TILE, shape.head_dim, &arguments)
}

/// `out [1, heads · D]` of one new query over the first `length` rows of a cache, its own row the last of them.
pub fn forward_row(shape: AttentionShape, inputs: Inputs<'_>, length: usize, out: &Buffer<bf16>) -> Result<()> {
    kernels_of(shape)?;
    let Inputs { q, k, v } = inputs;
    let width = shape.kv_heads * shape.head_dim;
    assert!(q.len() == shape.heads * shape.head_dim && out.len() == q.len());
    assert!(k.cols() == width && v.cols() == width && (1..=k.rows().min(v.rows())).contains(&length));
    let gpu = q.gpu();
    let pieces = length.div_ceil(PART_KEYS);
    let parts = gpu.buffer::<f32>(shape.heads * pieces, shape.head_dim + 2)?;
    let ([heads, kv_heads], head_dim) = (heads(shape)?, (count(shape.head_dim)? as i32).into());
    let length = (count(length)? as i32).into();
    let read = [q.pointer(), k.pointer(), v.pointer(), parts.pointer()];
    let arguments = [&read[..], &[length, heads, kv_heads, head_dim, shape.scale().into()]].concat();
    let grid = [count(pieces)?, count(shape.heads)?];
    let kernel = "attention_row_parts";
    gpu.launch(&Launch { kernel, grid, threads: PART_KEYS as u32, shared_bytes: 0, arguments: &arguments })?;
    let arguments = [parts.pointer(), out.pointer(), (count(pieces)? as i32).into(), head_dim];
    gpu.rows("attention_row_whole", shape.heads, PART_KEYS as u32, &arguments)
}

/// What the backward pass needs of the forward pass.
#[derive(Clone, Copy)]
pub struct Saved<'a> {
    /// Its inputs.
    pub inputs: Inputs<'a>,
    /// Its output.
    pub out: &'a Buffer<bf16>,
    /// Its log-sum-exp.
    pub lse: &'a Buffer<f32>,
}

/// Gradients of q, k and v for the gradient `dout` of the output; rows outside all documents become zero.
pub fn backward(
    shape: AttentionShape,
    saved: Saved<'_>,
    tiles: &Tiles,
    dout: &Buffer<bf16>,
) -> Result<[Buffer<bf16>; 3]> {
    let kernels = kernels_of(shape)?;
    let Saved { inputs: Inputs { q, k, v }, out, lse } = saved;
    let gpu = q.gpu();
    let delta = gpu.buffer::<f32>(q.rows(), shape.heads)?;
    let (rows, warps) = (delta.len(), THREADS as usize / 32);
    let head_dim = count(shape.head_dim)? as i32;
    let arguments = [dout.pointer(), out.pointer(), delta.pointer(), (rows as i64).into(), head_dim.into()];
    gpu.rows("attention_delta", rows.div_ceil(warps), THREADS, &arguments)?;

    let [dq, dk, dv] = [gpu.zeros(q.rows(), q.cols())?, gpu.zeros(k.rows(), k.cols())?, gpu.zeros(v.rows(), v.cols())?];
    let [heads, kv_heads] = heads(shape)?;
    let read = [q.pointer(), k.pointer(), v.pointer(), dout.pointer(), lse.pointer(), delta.pointer()];
    let rest = [tiles.tiles.pointer(), heads, kv_heads, shape.scale().into()];
    let arguments = [&read[..], &[dq.pointer()], &rest].concat();
    tiles.launch(kernels.query_gradients, shape.heads, 2 * TILE + 2 * SMALL_TILE, shape.head_dim, &arguments)?;
    let arguments = [&read[..], &[dk.pointer(), dv.pointer()], &rest].concat();
    tiles.launch(kernels.key_gradients, shape.kv_heads, 2 * TILE + 2 * SMALL_TILE, shape.head_dim, &arguments)?;
    Ok([dq, dk, dv])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::attention::reference;
    use crate::ops::testing::{assert_halves, emulated_gpu, halves, normal, through_bf16};

    fn narrow(values: &[f64]) -> Vec<f32> {
        values.iter().map(|&value| value as f32).collect()
    }

    /// Documents of one row, of exactly a tile, across tiles; gaps before and after.
    #[allow(clippy::single_range_in_vec_init)] // a pack of one document is a list of one range
    fn packings() -> Vec<(usize, Vec<Range<usize>>)> {
        vec![
            (1, vec![0..1]),
            (64, vec![0..64]),
            (150, vec![0..1, 1..66, 66..150]),
            (140, vec![3..3, 5..135]),
            (33, vec![0..16, 16..33]),
        ]
    }

    #[test]
    fn equals_the_reference_forward_and_backward() {
        let Some(gpu) = emulated_gpu() else { return };
        for (heads, kv_heads, head_dim) in [(1, 1, 16), (4, 2, 32), (3, 1, 64), (2, 2, 96), (2, 1, 128)] {
            let shape = AttentionShape { heads, kv_heads, head_dim };
            for (rows, segments) in packings() {
                let values = |label: &str, heads: usize| through_bf16(&normal(label, rows * heads * head_dim));
                let (q, k, v) = (values("q", heads), values("k", kv_heads), values("v", kv_heads));
                let dout = values("dout", heads);
                let device =
                    |values: &[f32], heads: usize| gpu.upload(&halves(values), rows, heads * head_dim).unwrap();
                let (gq, gk, gv) = (device(&q, heads), device(&k, kv_heads), device(&v, kv_heads));
                let inputs = Inputs { q: &gq, k: &gk, v: &gv };
                let tiles = Tiles::new(&gpu, &segments, rows).unwrap();
                let (out, lse) = (gpu.zeros(rows, heads * head_dim).unwrap(), gpu.zeros::<f32>(rows, heads).unwrap());
                forward(shape, inputs, &tiles, &out, &lse).unwrap();
                let (expected, expected_lse) = reference::forward(shape, &q, &k, &v, &segments);
                assert_halves("out", &out.read().unwrap(), &narrow(&expected), 4e-3);
                for (a, e) in lse.read().unwrap().iter().zip(&expected_lse) {
                    assert!((f64::from(*a) - e).abs() < 1e-4, "lse {a} for {e}");
                }
                let saved = Saved { inputs, out: &out, lse: &lse };
                let gradients = backward(shape, saved, &tiles, &device(&dout, heads)).unwrap();
                let expected = reference::gradients(shape, [&q, &k, &v], &dout, &segments).unwrap();
                for ((name, gradient), expected) in ["dq", "dk", "dv"].iter().zip(&gradients).zip(&expected) {
                    let what = format!("{name} {shape:?} {segments:?}");
                    assert_halves(&what, &gradient.read().unwrap(), &narrow(expected), 1e-2);
                }
            }
        }
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init)] // as above
    fn new_rows_attend_to_the_cache() {
        let Some(gpu) = emulated_gpu() else { return };
        for (heads, kv_heads, head_dim) in [(1, 1, 16), (4, 2, 32), (3, 1, 64), (2, 2, 96), (2, 1, 128)] {
            let shape = AttentionShape { heads, kv_heads, head_dim };
            for (past, rows) in [(0, 1), (0, 70), (1, 1), (37, 5), (64, 64), (127, 1), (128, 1), (130, 65), (300, 1)] {
                let (end, capacity) = (past + rows, past + rows + 3);
                let values = |label: &str, heads: usize| through_bf16(&normal(label, end * heads * head_dim));
                let (q, k, v) = (values("q", heads), values("k", kv_heads), values("v", kv_heads));
                let (expected, _) = reference::forward(shape, &q, &k, &v, &[0..end]);
                let expected = narrow(&expected[past * heads * head_dim..]);

                // What lies behind the last row must not count.
                let cache = |values: &[f32]| {
                    let mut all = halves(values);
                    all.resize(capacity * kv_heads * head_dim, bf16::NAN);
                    gpu.upload(&all, capacity, kv_heads * head_dim).unwrap()
                };
                let (gk, gv) = (cache(&k), cache(&v));
                let gq = gpu.upload(&halves(&q[past * heads * head_dim..]), rows, heads * head_dim).unwrap();
                let inputs = Inputs { q: &gq, k: &gk, v: &gv };
                let (out, lse) = (gpu.buffer(rows, gq.cols()).unwrap(), gpu.buffer::<f32>(rows, heads).unwrap());
                forward(shape, inputs, &Tiles::behind(&gpu, past, rows).unwrap(), &out, &lse).unwrap();
                let what = format!("{shape:?} past {past} rows {rows}");
                assert_halves(&what, &out.read().unwrap(), &expected, 4e-3);
                if rows == 1 {
                    let out = gpu.buffer(1, gq.cols()).unwrap();
                    forward_row(shape, inputs, end, &out).unwrap();
                    assert_halves(&format!("row: {what}"), &out.read().unwrap(), &expected, 4e-3);
                }
            }
        }
    }

    #[test]
    fn other_head_sizes_are_refused() {
        let error = check_shape(AttentionShape { heads: 2, kv_heads: 1, head_dim: 80 }).unwrap_err();
        assert!(error.message().contains("heads of 80 values"), "{error:?}");
    }
}
