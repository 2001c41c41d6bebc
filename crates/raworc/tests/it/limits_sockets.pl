# Fills sockets of a kind with what nobody reads, and says how many bytes wait in them.
use strict; use Socket; use IO::Handle;
my ($kind) = @ARGV;
my ($sum, $chunk, @kept) = (0, 'x' x 65000);
sub pair {
  if ($kind eq 'unix') { socketpair(my $a, my $b, AF_UNIX, SOCK_STREAM, 0) or return; return ($a, $b) }
  my $type = $kind eq 'tcp' ? SOCK_STREAM : SOCK_DGRAM;
  socket(my $a, PF_INET, $type, 0) or return;
  bind($a, pack_sockaddr_in(0, INADDR_LOOPBACK)) or return;
  setsockopt($a, SOL_SOCKET, SO_RCVBUF, pack('i', 1 << 26));
  socket(my $b, PF_INET, $type, 0) or return;
  setsockopt($b, SOL_SOCKET, SO_SNDBUF, pack('i', 1 << 26));
  if ($kind eq 'tcp') { listen($a, 5) or return }
  connect($b, getsockname($a)) or return;
  if ($kind eq 'tcp') { accept(my $c, $a) or return; return ($b, $c) }
  return ($b, $a);
}
for (1 .. 1000) {
  my ($from, $to) = pair() or last;
  push @kept, [$from, $to];
  $_->blocking(0) for $from, $to;
  # A socket of datagrams never says that the other one is full.
  for (1 .. 600) { my $sent = syswrite($from, $chunk) or last; $sum += $sent if $kind ne 'udp' }
}
if ($kind eq 'udp') { for my $pair (@kept) { while (defined(my $got = sysread($pair->[1], my $text, 65536))) { $sum += $got } } }
print "$sum\n";
