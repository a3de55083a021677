//! Where a packed panel of B lies, alone or beside others.
//!
//! A panel holds `vectors · width` columns of B for one depth block, depth-major: `panel[depth][column]`. Columns
//! beyond the matrix hold anything (their sums are never stored); a depth beyond it, in the second half of the last
//! pair, is zero. Panels side by side lie at one distance from each other, so that a row of the weight can be written to all
//! of them in one pass.

#[cfg(target_arch = "x86_64")]
use super::kernel::Kernels;
use std::ops::Range;

/// One panel, or several side by side: which part of B and where to.
pub(super) struct Panel<'a> {
    /// Columns of B.
    pub columns: Range<usize>,
    /// Elements along the reduction; starts at a multiple of 64.
    pub depth: Range<usize>,
    /// Words from one depth to the next.
    pub stride: usize,
    /// `depth · stride` words.
    pub to: &'a mut [f32],
    /// [`super::pack_dense::STRIPS`] words.
    pub strips: &'a mut [f32],
}

#[cfg(target_arch = "x86_64")]
impl Panel<'_> {
    /// Where vectors of 16 columns go if panels lie so many words apart; of one panel alone, None.
    ///
    /// # Panics
    /// Unless there is room for each started vector at each depth of each panel: what packers rely on.
    pub fn vectors(&mut self, kernels: &Kernels, apart: Option<usize>) -> Vectors {
        let beside = (kernels.panel_columns(), apart.unwrap_or(0));
        let others = self.columns.len().saturating_sub(1) / beside.0;
        let columns = self.columns.len().min(beside.0).next_multiple_of(VECTOR);
        let words = self.depth.len().div_ceil(kernels.per_word()) * self.stride;
        assert!(others == 0 || apart.is_some());
        assert!(self.stride >= columns && self.to.len() >= others * beside.1 + words);
        Vectors { to: self.to.as_mut_ptr(), stride: self.stride, beside }
    }
}

/// Columns in a vector of [`Vectors`].
#[cfg(target_arch = "x86_64")]
pub(super) const VECTOR: usize = 16;

/// Where the vectors of columns of some panels go.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Vectors {
    /// First word of the first panel.
    pub to: *mut f32,
    /// Words from one depth to the next.
    pub stride: usize,
    /// Columns of a panel, and words from one panel to the next.
    beside: (usize, usize),
}

#[cfg(target_arch = "x86_64")]
impl Vectors {
    /// The first words of the vectors at a depth, one after the other without end: those of the first panel, then those of the
    /// next one.
    #[inline(always)]
    pub fn at(&self, depth: usize) -> impl Iterator<Item = *mut f32> {
        let (columns, apart) = self.beside;
        let mut to = self.to.wrapping_add(depth * self.stride);
        let mut left = columns;
        std::iter::repeat_with(
            #[inline(always)]
            move || {
                if left == 0 {
                    to = to.wrapping_add(apart - columns);
                    left = columns;
                }
                left -= VECTOR;
                let at = to;
                to = to.wrapping_add(VECTOR);
                at
            },
        )
    }
}
