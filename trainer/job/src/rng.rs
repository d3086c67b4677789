//! Counter-based random numbers: the same (seed, stream, sample, draw) always gives the same number.
//!
//! There is no state to save or to share, so ranks, threads and resumed runs agree without communication. Not
//! cryptographically secure.
//!
//! Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011 (Philox4x32-10).

/// The purpose of random numbers. Different purposes never share numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// The order of samples in an epoch.
    Order = 1,
    /// Crops, flips and cutout squares of training images.
    Augment = 2,
    /// Synthetic training images.
    SyntheticTrain = 3,
    /// Synthetic test images.
    SyntheticTest = 4,
    /// Initial weights; the sample is the tensor's index in the state dict.
    Weights = 5,
    /// Which blocks a step skips; the epoch is the step, the sample the block.
    StochasticDepth = 6,
    /// The seed of a step's dropout; the epoch is the step, the sample the rank.
    Dropout = 7,
    /// Partners and weights of mixup and cutmix.
    Mix = 8,
    /// The operations of RandAugment.
    RandAugment = 9,
    /// Colour jitter of training images.
    ColorJitter = 10,
}

/// A stream of random numbers: a purpose and, for purposes that repeat, an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream(u64);

impl Stream {
    /// Makes the stream of `purpose` in `epoch`, which is 0 if the purpose has no epochs.
    pub fn new(purpose: Purpose, epoch: u64) -> Self {
        Self((purpose as u64) << 56 | (epoch & ((1 << 56) - 1)))
    }
}

/// Returns 128 random bits.
pub fn block(seed: u64, stream: Stream, sample: u32, draw: u32) -> [u32; 4] {
    let counter = [draw, sample, stream.0 as u32, (stream.0 >> 32) as u32];
    philox(counter, [seed as u32, (seed >> 32) as u32])
}

/// Returns 64 random bits.
pub fn bits(seed: u64, stream: Stream, sample: u32, draw: u32) -> u64 {
    let [low, high, ..] = block(seed, stream, sample, draw);
    u64::from(high) << 32 | u64::from(low)
}

/// Maps 64 random bits to `0..n`. `n` must be above 0.
///
/// The bias is below n / 2^64.
pub fn below(bits: u64, n: u64) -> u64 {
    assert!(n > 0, "there is no number below 0");
    ((u128::from(bits) * u128::from(n)) >> 64) as u64
}

/// Successive draws of one sample.
#[derive(Debug, Clone)]
pub struct Draws {
    seed: u64,
    stream: Stream,
    sample: u32,
    next: u32,
}

impl Draws {
    /// Starts at draw 0.
    pub fn new(seed: u64, stream: Stream, sample: u32) -> Self {
        Self { seed, stream, sample, next: 0 }
    }

    /// Returns the next 128 bits.
    pub fn block(&mut self) -> [u32; 4] {
        let block = block(self.seed, self.stream, self.sample, self.next);
        self.next += 1;
        block
    }

    /// Returns the next 64 bits.
    pub fn bits(&mut self) -> u64 {
        let [low, high, ..] = self.block();
        u64::from(high) << 32 | u64::from(low)
    }

    /// Returns a number in `0..n`. `n` must be above 0.
    pub fn below(&mut self, n: u64) -> u64 {
        below(self.bits(), n)
    }

    /// Returns a number in `0.0..1.0`.
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 24) as f32
    }
}

/// Ten rounds of Philox-4x32.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let first = u64::from(counter[0]) * 0xD251_1F53;
        let second = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_authors_known_answers() {
        let cases: [([u32; 4], [u32; 2], [u32; 4]); 3] = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, answer) in cases {
            assert_eq!(philox(counter, key), answer);
        }
    }

    #[test]
    fn every_part_of_the_position_matters() {
        let order = Stream::new(Purpose::Order, 3);
        let here = bits(1, order, 2, 4);
        let others = [
            bits(1 << 40, order, 2, 4),
            bits(1, Stream::new(Purpose::Order, 4), 2, 4),
            bits(1, Stream::new(Purpose::Augment, 3), 2, 4),
            bits(1, order, 4, 2),
            bits(1, order, 2, 5),
        ];
        assert!(!others.contains(&here));
        assert_eq!(here, bits(1, order, 2, 4));
    }

    #[test]
    fn numbers_below_n_are_uniform() {
        let mut draws = Draws::new(7, Stream::new(Purpose::Augment, 0), 0);
        let (n, count) = (9usize, 90_000);
        let mut seen = vec![0f64; n];
        for _ in 0..count {
            seen[draws.below(n as u64) as usize] += 1.0;
        }
        let expected = count as f64 / n as f64;
        let chi2: f64 = seen.iter().map(|s| (s - expected).powi(2) / expected).sum();
        assert!(chi2 < 26.1, "chi2 of 8 degrees of freedom is {chi2}: p < 0.001");
    }

    #[test]
    fn units_fill_the_range_from_0_to_below_1() {
        let mut draws = Draws::new(7, Stream::new(Purpose::Augment, 1), 3);
        let units: Vec<f32> = (0..10_000).map(|_| draws.unit()).collect();
        assert!(units.iter().all(|unit| (0.0..1.0).contains(unit)));
        let mean = units.iter().sum::<f32>() / units.len() as f32;
        assert!((mean - 0.5).abs() < 0.02, "mean {mean}");
    }
}
