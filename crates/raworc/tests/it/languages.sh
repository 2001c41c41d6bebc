# Runs a tiny program, which prints 42, in every language that the machine has. Says `ok NAME`, `missing NAME` or `failed NAME: …`.
mkdir /tmp/languages && cd /tmp/languages || exit 1
# NAME PROGRAM SUFFIX COMMAND: the text on standard input is in $f.
language() {
  f=program$3; cat >$f
  if ! command -v $2 >/dev/null; then echo "missing $1"; rm -rf ./*; return; fi
  said=$(eval "$4" 2>&1 </dev/null); status=$?
  case $status:$said in 0:*42*) echo "ok $1" ;; *) echo "failed $1: $status: $(echo $said | head -c 600)" ;; esac
  rm -rf ./*
}
interpreter() { language $1 $1 "" "$1 ${2-} \$f"; }
compiler() { language $1 $1 $2 "$1 $3 && ./made"; }
says() { language "$1" ${1%% *} "" "$1 >out && echo 42" </dev/null; }

# Shells and small languages.
for shell in sh bash dash zsh ksh mksh yash busybox; do
  [ $shell = busybox ] && with=sh || with=
  interpreter $shell $with <<<'echo $((6 * 7))'
done
language fish fish "" 'fish $f' <<<'math 6 x 7'
language tcsh tcsh "" 'tcsh -f $f' <<<'@ x = 6 * 7; echo $x'
for awk in awk gawk mawk original-awk; do interpreter $awk -f <<<'BEGIN { print 6 * 7 }'; done
language sed sed "" 'echo six | sed -f $f' <<<'s/six/42/'
language bc bc "" 'bc -q $f' <<<$'6 * 7\nquit'
language dc dc "" 'dc $f' <<<'6 7 * p'
language m4 m4 "" 'm4 $f' <<<'eval(6 * 7)'
language expect expect "" 'expect $f' <<<'puts [expr 6 * 7]'
language jq jq "" 'jq -n -f $f' <<<'6 * 7'
language sqlite3 sqlite3 "" 'sqlite3 :memory: <$f' <<<'SELECT 6 * 7;'
language xmllint xmllint .xml 'xmllint --valid --noout $f && echo 42' <<<'<!DOCTYPE a [<!ELEMENT a EMPTY>]><a/>'
language xsltproc xsltproc .xsl 'xsltproc $f $f' <<<'<x:stylesheet version="1.0" xmlns:x="http://www.w3.org/1999/XSL/Transform"><x:template match="/"><x:value-of select="6*7"/></x:template></x:stylesheet>'

# Interpreters.
interpreter perl <<<'use List::Util "sum"; use POSIX; use Socket; print sum(40, 2)'
for python in python3 pypy3 python2; do interpreter $python <<<'import json, ssl, sqlite3, decimal, multiprocessing; print(6 * 7)'; done
interpreter ruby <<<'require "json"; puts 6 * 7'
interpreter php <<<'<?php echo json_encode(6 * 7);'
interpreter node <<<'require("https"); console.log(6 * 7)'
says 'npm --version'
for lua in lua lua5.4 lua5.3 lua5.1 luajit; do interpreter $lua <<<'print(6 * 7)'; done
for tcl in tclsh wish; do [ $tcl = wish ] || interpreter $tcl <<<'puts [expr 6 * 7]'; done
interpreter Rscript <<<'cat(sum(40, 2))'
language octave octave-cli .m 'octave-cli --no-window-system -q $f' <<<'disp(6 * 7)'
language erlang escript "" 'escript $f' <<<$'#!/usr/bin/env escript\nmain(_) -> io:format("~p", [6 * 7]).'
language elixir elixir .exs 'elixir $f' <<<'IO.puts(6 * 7)'
language guile guile .scm 'guile --no-auto-compile -s $f' <<<'(display (* 6 7))'
language sbcl sbcl .lisp 'sbcl --script $f' <<<'(print (* 6 7))'
language clisp clisp .lisp 'clisp -q $f' <<<'(print (* 6 7))'
language ecl ecl .lisp 'ecl --shell $f' <<<'(print (* 6 7))'
language racket racket .rkt 'racket $f' <<<$'#lang racket/base\n(display (* 6 7))'
language gforth gforth .fs 'gforth $f -e bye' <<<'6 7 * .'
language swipl swipl .pl 'swipl -q -g main -t halt $f' <<<'main :- X is 6 * 7, print(X).'
language gst gst .st 'gst $f' <<<'(6 * 7) printNl !'
language emacs emacs .el 'emacs --batch -Q -l $f' <<<'(princ (* 6 7))'
language vim vim .vim 'vim -u NONE -es -S $f' <<<$'put =6*7\nprint\nq!'
language maxima maxima "" 'maxima --very-quiet --batch-string="6*7;"' </dev/null
language gnuplot gnuplot .gp 'gnuplot $f' <<<'print 6 * 7'
language ghostscript gs .ps 'gs -q -dNODISPLAY -dBATCH -dNOPAUSE $f' <<<'6 7 mul = quit'

# Compilers.
c='int puts(const char *); int main(void) { return puts("42") < 0; }'
for cc in gcc clang tcc cc; do compiler $cc .c '-o made $f' <<<"$c"; done
for cc in g++ clang++ c++; do compiler $cc .cc '-o made $f' <<<$'#include <iostream>\nint main() { std::cout << 6 * 7 << std::endl; }'; done
compiler gfortran .f90 '-o made $f' <<<$'program p\nprint *, 6 * 7\nend program'
compiler gdc .d '-o made $f' <<<$'import std.stdio;\nvoid main() { writeln(6 * 7); }'
compiler ldc2 .d '-of=made $f' <<<$'import std.stdio;\nvoid main() { writeln(6 * 7); }'
language gnat gnatmake .adb 'gnatmake -q $f -o made && ./made' <<<'with Ada.Text_IO; procedure Program is begin Ada.Text_IO.Put_Line (Integer'"'"'Image (6 * 7)); end Program;'
language gobjc gobjc .m 'gcc -o made $f -lobjc && ./made' <<<"$c"
language rust rustc .rs 'rustc -o made $f && ./made' <<<'fn main() { println!("{}", 6 * 7) }'
language cargo cargo "" 'cargo init -q --vcs none --name made x && cd x && cargo run -q --offline && echo 42' </dev/null
language go go .go 'GOCACHE=$PWD/c go run $f' <<<$'package main\nfunc main() { println(6 * 7) }'
compiler fpc .pas '-omade $f' <<<'begin writeln(6 * 7) end.'
compiler ghc .hs '-o made $f' <<<'main = print (6 * 7)'
language ocaml ocaml .ml 'ocaml $f' <<<'print_int (6 * 7)'
language ocamlopt ocamlopt .ml 'ocamlopt -o made $f && ./made' <<<'print_int (6 * 7)'
language nasm nasm .asm 'nasm -f elf64 -o o $f && ld -o made o && ./made; [ $? = 42 ] && echo 42' <<<$'global _start\n_start: mov eax, 60\nmov edi, 42\nsyscall'
language nim nim .nim 'nim c --nimcache:c -o:made $f && ./made' <<<'echo 6 * 7'
language crystal crystal .cr 'crystal run $f' <<<'puts 6 * 7'
language valac valac .vala 'valac -o made $f && ./made' <<<'int main () { stdout.printf ("%d", 6 * 7); return 0; }'
language mono mcs .cs 'mcs -out:made.exe $f && mono made.exe' <<<'class P { static void Main() { System.Console.WriteLine(6 * 7); } }'
language cobol cobc .cob 'cobc -x -free -o made $f && ./made' <<<'program-id. p. procedure division. display "42". stop run.'
language tex tex .tex 'tex -interaction=batchmode $f && grep -o 42 *.log' <<<'\message{42}\bye'
language latex pdflatex .tex 'pdflatex -interaction=batchmode $f && ls *.pdf && echo 42' <<<'\documentclass{article}\begin{document}42\end{document}'
language java java .java 'java $f' <<<'public class program { public static void main(String[] a) throws Exception { java.security.Security.getProviders(); javax.net.ssl.SSLContext.getDefault(); System.out.println(6 * 7); } }'
language javac javac .java 'javac $f && java -XX:TieredStopAtLevel=1 program' <<<'public class program { public static void main(String[] a) { System.out.println(6 * 7); } }'
for jvm in kotlinc scala groovy clojure; do says "$jvm -version"; done
says 'mvn --version'; says 'ant -version'; says 'gradle --version'

# What goes with them.
language make make "" 'make -f $f' <<<$'all:\n\t@echo 42'
language cmake cmake "" 'cp $f CMakeLists.txt && cmake . && echo 42' <<<$'cmake_minimum_required(VERSION 3.5)\nproject(p C)'
language autoconf autoconf "" 'cp $f configure.ac && autoconf && sh configure && echo 42' <<<$'AC_INIT([p], [1])\nAC_PROG_CC\nAC_OUTPUT'
language flex flex .l 'flex -t $f >out && echo 42' <<<$'%%\n. ;\n%%'
language bison bison .y 'bison -o out $f && echo 42' <<<$'%%\na: "b";\n%%'
language git git "" 'git init -q . && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m x && git log --oneline | wc -l && echo 42' </dev/null
language gdb gdb .gdb 'gdb -q -batch -nx -x $f' <<<'print 6 * 7'
language psql psql "" 'psql --version && echo 42' </dev/null
language mysql mysql "" 'mysql --version && echo 42' </dev/null
language openssl openssl "" 'openssl req -x509 -newkey rsa:2048 -nodes -keyout k -subj /CN=x -out c && openssl verify -CAfile c c && echo 42' </dev/null
language man man .1 'man -w man; man -l $f' <<<$'.TH x 1\n.SH NAME\n42'
language locale locale "" 'LC_ALL=C.UTF-8 locale charmap && date +%Z && echo 42' </dev/null
language fc-list fc-list "" 'fc-list >out && echo 42' </dev/null
language file file "" 'file -b $f && echo 42' <<<'text'
says 'pkg-config --version'; says 'valgrind --version'; says 'strace -V'; says 'perf --version'; says 'dpkg --print-architecture'
