//! Account of a tenant against a naive oracle: a list of charges that is summed up for each decision.

use super::*;
use crate::limits;
use crate::model::ResourceVector;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const POOLS: u32 = 4;

/// Prints the seed of a run that fails, also in an assertion of the account itself.
struct FailingSeed(u64);

impl Drop for FailingSeed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("reproduce with seed {}", self.0);
        }
    }
}

/// Reference model: each charge with its pool, and the quota in force.
struct ChargeList {
    charges: Vec<(ResourceUsage, u32)>,
    quota: Quota,
}

impl ChargeList {
    fn sum(&self, pool: Option<u32>) -> [u128; 4] {
        let mut sums = [0; 4];
        for (amounts, _) in self.charges.iter().filter(|(_, other)| pool.is_none_or(|pool| pool == *other)) {
            for (sum, amount) in sums.iter_mut().zip(amounts.to_array()) {
                *sum += u128::from(amount);
            }
        }
        sums
    }

    /// First amount that would grow from `less` to `more` and then exceed the quota.
    fn exceeded(&self, less: &ResourceUsage, more: &ResourceUsage) -> Option<QuotaResource> {
        let Quota { claims, cpu_milli, memory_bytes, gpu_milli, .. } = self.quota;
        for (i, limit) in [claims, cpu_milli, memory_bytes, gpu_milli].into_iter().enumerate() {
            let (less, more) = (less.to_array()[i], more.to_array()[i]);
            let after = self.sum(None)[i] + u128::from(more) - u128::from(less).min(self.sum(None)[i]);
            if more > less && limit.is_some_and(|limit| after > u128::from(limit)) {
                return Some(QuotaResource::ALL[i]);
            }
        }
        None
    }

    fn dominant_share(&self, pool: u32, total: &ResourceUsage) -> u64 {
        let held = self.sum(Some(pool)).into_iter().map(|sum| sum.min(u128::from(u64::MAX)));
        let fractions = held.zip(total.to_array()).map(|(held, total)| (held << 32) / u128::from(total.max(1)));
        let largest = u64::try_from(fractions.max().unwrap()).unwrap_or(u64::MAX);
        largest / u64::from(self.quota.weight)
    }
}

/// Number of cases of each kind that occurred, to show that the generator leaves none out.
#[derive(Debug, Default)]
struct CaseCounts {
    charged: u64,
    rejected: [u64; 4],
    above_limit: u64,
    moved: u64,
    resized: u64,
    kept_size: u64,
}

/// Random account, its oracle, and what happened so far.
struct AccountRun<'a> {
    random: StdRng,
    account: TenantAccount,
    list: ChargeList,
    counts: &'a mut CaseCounts,
}

impl AccountRun<'_> {
    fn amounts(&mut self) -> ResourceUsage {
        let huge = self.random.random_bool(0.02);
        let mut amount = |most: u64| {
            if huge { limits::AMOUNT_MAX } else { self.random.random_range(0..=most) }
        };
        ResourceUsage::new(
            1,
            ResourceVector {
                cpu_milli: amount(4),
                memory_bytes: amount(9),
                gpu_milli: amount(2),
                ..ResourceVector::default()
            },
        )
    }

    fn quota(&mut self) -> Quota {
        let mut limit = |most: u64| self.random.random_bool(0.5).then(|| self.random.random_range(0..=most));
        Quota {
            claims: limit(12),
            cpu_milli: limit(20),
            memory_bytes: limit(40),
            gpu_milli: limit(8),
            weight: self.random.random_range(1..=3),
        }
    }

    fn drawn_charge(&mut self) -> Option<usize> {
        (!self.list.charges.is_empty()).then(|| self.random.random_range(0..self.list.charges.len()))
    }

    fn step(&mut self) {
        let pool = self.random.random_range(0..POOLS);
        match self.random.random_range(0..100) {
            0..40 => self.charge(pool),
            40..45 => {
                let amounts = self.amounts();
                self.account.charge_unchecked(&amounts, pool);
                self.list.charges.push((amounts, pool));
            }
            45..65 => {
                if let Some(index) = self.drawn_charge() {
                    let (amounts, pool) = self.list.charges.swap_remove(index);
                    self.account.release(&amounts, pool);
                }
            }
            65..75 => {
                if let Some(index) = self.drawn_charge() {
                    let (amounts, from) = self.list.charges[index];
                    self.account.move_to_pool(&amounts, from, pool);
                    self.list.charges[index].1 = pool;
                    self.counts.moved += 1;
                }
            }
            75..95 => self.resize(),
            _ => {
                self.list.quota = self.quota();
                self.account.set_limits(&self.list.quota);
            }
        }
        self.compare();
    }

    fn charge(&mut self, pool: u32) {
        let amounts = self.amounts();
        let exceeded = self.list.exceeded(&ResourceUsage::default(), &amounts);
        assert_eq!(self.account.charge(&amounts, pool, NEWCOMER), exceeded.map_or(Ok(()), Err));
        match exceeded {
            Some(resource) => self.counts.rejected[resource as usize] += 1,
            None => {
                self.list.charges.push((amounts, pool));
                self.counts.charged += 1;
            }
        }
    }

    fn resize(&mut self) {
        let Some(index) = self.drawn_charge() else { return };
        let ((before, pool), after) = (self.list.charges[index], self.amounts());
        if self.random.random_bool(0.2) {
            self.account.resize_unchecked(&before, &after, pool);
            self.list.charges[index].0 = after;
            return;
        }
        let exceeded = self.list.exceeded(&before, &after);
        assert_eq!(self.account.resize(&before, &after, pool), exceeded.map_or(Ok(()), Err));
        if exceeded.is_none() {
            self.list.charges[index].0 = after;
            self.counts.resized += 1;
        } else {
            self.counts.kept_size += 1;
        }
    }

    fn compare(&mut self) {
        let sums = self.list.sum(None);
        assert_eq!(self.account.used().to_array().map(u128::from), sums, "usage");
        let total = ResourceUsage { claims: 0, cpu_milli: 64, memory_bytes: 128, gpu_milli: 7 };
        for pool in 0..POOLS {
            let share = self.list.dominant_share(pool, &total);
            assert_eq!(self.account.dominant_share(pool, &total), share, "share of pool {pool}");
        }
        let limits = self.list.quota.limits().to_array();
        self.counts.above_limit += u64::from(sums.iter().zip(limits).any(|(sum, limit)| *sum > u128::from(limit)));
    }

    fn end(mut self) {
        while let Some(index) = self.drawn_charge() {
            let (amounts, pool) = self.list.charges.swap_remove(index);
            self.account.release(&amounts, pool);
            self.compare();
        }
        assert_eq!(self.account.used, ResourceUsage::default(), "nothing is left");
        assert!(self.account.pools.len() <= 1, "no pool is kept but the first");
    }
}

#[test]
fn u1_the_account_is_the_list_of_its_charges() {
    let mut counts = CaseCounts::default();
    for seed in 0..4_000 {
        let _printed = FailingSeed(seed);
        let list = ChargeList { charges: Vec::new(), quota: Quota::default() };
        let account = TenantAccount::new(&list.quota);
        let mut run = AccountRun { random: StdRng::seed_from_u64(seed), account, list, counts: &mut counts };
        let steps = run.random.random_range(1..80);
        (0..steps).for_each(|_| run.step());
        run.end();
    }
    let CaseCounts { charged, rejected, above_limit, moved, resized, kept_size, .. } = counts;
    let occurred = [charged, above_limit, moved, resized, kept_size];
    assert!(occurred.into_iter().chain(rejected).all(|count| count > 500), "cases that hardly occur: {counts:?}");
}

#[test]
fn amounts_beyond_64_bits_are_rejected_and_released_exactly() {
    let most = ResourceUsage { claims: 1, memory_bytes: limits::AMOUNT_MAX, ..ResourceUsage::default() };
    let mut account = TenantAccount::new(&Quota::default());
    let charged = (0..3_000).take_while(|_| account.charge(&most, 7, NEWCOMER).is_ok()).count() as u64;
    assert_eq!(charged, u64::MAX / limits::AMOUNT_MAX, "as many as 64 bits can count");
    assert_eq!(account.charge(&most, 7, NEWCOMER), Err(QuotaResource::Memory));
    (1..charged).for_each(|_| account.release(&most, 7));
    assert_eq!(account.used(), most);
}

#[test]
fn a_tenant_in_one_pool_after_the_other_has_one_entry() {
    let one = ResourceUsage { claims: 1, ..ResourceUsage::default() };
    let mut account = TenantAccount::new(&Quota::default());
    for pool in 0..100 {
        assert_eq!(account.charge(&one, pool, NEWCOMER), Ok(()));
        account.release(&one, pool);
        assert_eq!(account.pools.as_slice(), [(pool, ResourceUsage::default())]);
    }
}

#[test]
#[should_panic(expected = "U1: only what was charged is released")]
fn u1_more_than_was_charged_is_not_released() {
    let [one, two] = [1, 2].map(|claims| ResourceUsage { claims, ..ResourceUsage::default() });
    let mut account = TenantAccount::new(&Quota::default());
    account.charge_unchecked(&one, 0);
    account.release(&two, 0);
}

#[test]
#[should_panic(expected = "U1: a charge is released in the pool in which it was made")]
fn u1_nothing_is_released_in_another_pool() {
    let one = ResourceUsage { claims: 1, ..ResourceUsage::default() };
    let mut account = TenantAccount::new(&Quota::default());
    account.charge_unchecked(&one, 0);
    account.release(&one, 1);
}

/// Rank of a claim that does not wait.
const NEWCOMER: ChargeRank = ChargeRank { priority: 0, arrival: None };

fn waiting(priority: u16, arrival: u64) -> ChargeRank {
    ChargeRank { priority, arrival: ArrivalNumber::new(arrival) }
}

/// Q08: beside a claim that the quota has kept back for long, only those are charged that rank before it, or that leave
/// its need open.
#[test]
fn q08_headroom_is_collected_for_a_protected_claim() {
    let cpu = |cpu_milli| ResourceUsage { claims: 1, cpu_milli, ..ResourceUsage::default() };
    let mut account = TenantAccount::new(&Quota { cpu_milli: Some(10), ..Quota::default() });
    account.charge(&cpu(4), 0, NEWCOMER).unwrap();
    account.protect(Some(ProtectedClaim { priority: 1, arrival: ArrivalNumber::new(7).unwrap(), need: cpu(8) }));
    assert_eq!(account.charge(&cpu(1), 0, NEWCOMER), Err(QuotaResource::Cpu));
    assert_eq!(account.charge(&cpu(1), 0, waiting(1, 8)), Err(QuotaResource::Cpu));
    assert!(account.has_refused_waiting(), "it is searched for when there is more headroom");
    assert_eq!(account.charge(&cpu(1), 0, waiting(0, 1)), Err(QuotaResource::Cpu));
    assert_eq!(account.charge(&ResourceUsage { claims: 1, ..ResourceUsage::default() }, 0, NEWCOMER), Ok(()));
    assert_eq!(account.charge(&cpu(1), 0, waiting(1, 6)), Ok(()), "it came before");
    assert_eq!(account.charge(&cpu(1), 0, waiting(2, 9)), Ok(()), "it is more urgent");
    assert_eq!(account.charge(&cpu(8), 0, waiting(1, 7)), Err(QuotaResource::Cpu), "it does not fit yet");
    account.release(&cpu(4), 0);
    assert_eq!(account.charge(&cpu(8), 0, waiting(1, 7)), Ok(()));
    account.release(&cpu(1), 0);
    assert_eq!(account.charge(&cpu(1), 0, NEWCOMER), Ok(()), "nobody is protected any more");
}
