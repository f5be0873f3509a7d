//! Teachers' grants over months: kept alive, told of, sealed anew; and what operators hear when one dies.

mod alive;
mod command;
mod keys;
mod notices;
mod replicas;
mod told;
