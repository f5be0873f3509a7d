//! Nothing is duplicated, lost or wrong, whatever fails. Every random run prints its seed; `SEED=n` repeats it.

mod back_to_back;
mod chaos;
mod cluster;
mod crash;
mod kills;
mod leaps;
mod replicas;
mod school;
mod storm;
mod stream;
