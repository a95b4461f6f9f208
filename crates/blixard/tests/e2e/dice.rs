//! Chance that can be had again.

/// Where a series of random choices comes from: the same seed gives the same series.
pub(crate) struct Dice(u64);

impl Dice {
    /// A series of `BLIXARD_E2E_SEED`, or of another seed each time, which is printed.
    pub(crate) fn seeded() -> Self {
        let seed = number_in("BLIXARD_E2E_SEED").unwrap_or_else(|| u64::from(std::process::id()));
        println!("BLIXARD_E2E_SEED={seed} repeats this series");
        Self(seed)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        // splitmix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// A number that whoever runs the tests may give.
pub(crate) fn number_in(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is not a number")))
}
