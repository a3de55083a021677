//! One matrix product, timed against the arithmetic peak.

#![allow(dead_code)] // not every bench uses every part

use crate::peak::{now, peak_rate};
use llamantino::device::Compute;
use llamantino::ops::gemm::{backward_nn, forward_nt, matmul_nn, matmul_nt, matmul_tn, Store, WeightRef};
use llamantino::ops::{Arena, Bytes, Matrix};
use llamantino::quant::{Nf4Matrix, Scales, SourceDtype};
use std::time::Instant;

/// A small generator.
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    fn matrix(&mut self, arena: &Arena, rows: usize, cols: usize) -> Matrix {
        let mut matrix = arena.matrix(rows, cols);
        matrix.iter_mut().for_each(|value| *value = self.next() as f32 / (1u64 << 30) as f32 - 1.0);
        matrix
    }
}

/// A weight in one storage.
pub struct Weight {
    name: &'static str,
    f32: Option<Matrix>,
    bits: Vec<u16>,
    nf4: Option<Nf4Matrix>,
    rows: usize,
    cols: usize,
}

impl Weight {
    /// Random values in the storage of this name.
    pub fn new(name: &'static str, arena: &Arena, rows: usize, cols: usize) -> Weight {
        let mut random = Random(3);
        let mut weight = Weight { name, f32: None, bits: Vec::new(), nf4: None, rows, cols };
        match name {
            "f32" => weight.f32 = Some(random.matrix(arena, rows, cols)),
            "f16" | "bf16" => weight.bits = (0..rows * cols).map(|_| 0x3800 + random.next() as u16 % 512).collect(),
            _ => {
                let codes: Vec<u8> = (0..rows * cols / 2).map(|_| random.next() as u8).collect();
                let blocks = rows * cols / 64;
                let scale_codes: Vec<u8> = (0..blocks).map(|_| random.next() as u8).collect();
                weight.nf4 = Some(Nf4Matrix {
                    rows,
                    cols,
                    block: 64,
                    codes: Bytes::owned(&codes),
                    scales: Scales::Double {
                        codes: Bytes::owned(&scale_codes),
                        nested_absmax: vec![0.5; blocks.div_ceil(256)],
                        map: Box::new(std::array::from_fn(|i| i as f32 / 255.0)),
                        offset: 0.1,
                        nested_block: 256,
                    },
                    dtype: match name {
                        "nf4-bf16" => SourceDtype::Bf16,
                        "nf4-f16" => SourceDtype::F16,
                        _ => SourceDtype::F32,
                    },
                });
            }
        }
        weight
    }

    /// Borrows it.
    pub fn view(&self) -> WeightRef<'_> {
        let (rows, cols, bits) = (self.rows, self.cols, self.bits.as_slice());
        match (&self.f32, &self.nf4, self.name) {
            (Some(matrix), _, _) => WeightRef::F32(matrix.view()),
            (_, Some(matrix), _) => WeightRef::Nf4(matrix),
            (_, _, "f16") => WeightRef::F16 { bits, rows, cols },
            _ => WeightRef::Bf16 { bits, rows, cols },
        }
    }

    /// Bytes that a product reads.
    pub fn bytes(&self) -> f64 {
        let values = (self.rows * self.cols) as f64;
        match self.name {
            "f32" => values * 4.0,
            "f16" | "bf16" => values * 2.0,
            _ => values * (0.5 + 1.0 / 64.0),
        }
    }
}

/// One product: `(rows of the output, reduction, columns of the output)`.
pub struct Case {
    pub form: &'static str,
    pub storage: &'static str,
    pub compute: Compute,
    pub shape: (usize, usize, usize),
}

/// Medians of one case.
pub struct Figures {
    /// GFLOP/s.
    pub rate: f64,
    /// Percent of the peak around it.
    pub share: f64,
    /// GB/s of the weight.
    pub bandwidth: f64,
}

/// Times one case for about so many seconds.
pub fn measure(case: &Case, threads: usize, seconds: f64) -> Figures {
    let arena = Arena::new();
    let mut random = Random(9);
    let (rows, depth, columns) = case.shape;
    let weight = match case.form {
        "nt" => Weight::new(case.storage, &arena, columns, depth),
        _ => Weight::new(case.storage, &arena, depth, columns),
    };
    let input = match case.form {
        "tn" => random.matrix(&arena, depth, rows),
        _ => random.matrix(&arena, rows, depth),
    };
    let mut output = arena.zeros(rows, columns);
    let store = Store::set(case.compute);
    let mut product = || match (case.form, weight.view()) {
        // The forms that a frozen weight is multiplied in; single rows are those of `RowProduct`.
        ("nt", w) if rows > 1 => forward_nt(input.view(), w, output.view_mut(), case.compute),
        ("nn", w) if rows > 1 => backward_nn(input.view(), w, output.view_mut(), false, case.compute),
        ("nt", w) => matmul_nt(input.view(), w, output.view_mut(), store),
        ("nn", w) => matmul_nn(input.view(), w, output.view_mut(), store),
        (_, WeightRef::F32(b)) => matmul_tn(input.view(), b, output.view_mut(), store),
        _ => {}
    };
    product();
    let work = 2.0 * (rows * depth * columns) as f64;
    let calls = (2e8 / work).ceil() as usize;
    let (mut rates, mut shares) = (Vec::new(), Vec::new());
    let start = Instant::now();
    while rates.len() < 5 || (start.elapsed().as_secs_f64() < seconds && rates.len() < 300) {
        let before = peak_rate(threads, case.compute);
        let begin = now(threads);
        (0..calls).for_each(|_| product());
        let rate = work * calls as f64 / (now(threads) - begin).as_secs_f64() / 1e9;
        let peak = (before + peak_rate(threads, case.compute)) / 2.0;
        rates.push(rate);
        shares.push(rate / peak * 100.0);
    }
    rates.sort_by(f64::total_cmp);
    shares.sort_by(f64::total_cmp);
    let (rate, share) = (rates[rates.len() / 2], shares[shares.len() / 2]);
    Figures { rate, share, bandwidth: rate / work * weight.bytes() }
}

/// The name of a case.
pub fn line(case: &Case) -> String {
    let (rows, depth, columns) = case.shape;
    format!("{:?} {} {:8} {rows:5} x {depth:5} -> {columns:5}", case.compute, case.form, case.storage).to_lowercase()
}
