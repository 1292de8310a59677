package stage

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

// program stands where package cluster has the test that it works for: our
// commands use the test bed outside of any. It has only what cluster calls.
type program struct {
	testing.TB
	ctx      context.Context // as in testing.T
	cleanups []func()
	errs     []error
}

// ended is what a program panics with where a test would stop.
type ended struct{ error }

func (p *program) Helper()                  {}
func (p *program) Logf(string, ...any)      {}
func (p *program) Context() context.Context { return p.ctx }
func (p *program) Cleanup(f func())         { p.cleanups = append(p.cleanups, f) }
func (p *program) Skip(args ...any)         { p.Fatal(args...) }
func (p *program) Skipf(format string, args ...any) {
	p.Fatalf(format, args...)
}
func (p *program) Fatal(args ...any) { panic(ended{errors.New(fmt.Sprint(args...))}) }
func (p *program) Fatalf(format string, args ...any) {
	panic(ended{fmt.Errorf(format, args...)})
}

func (p *program) Errorf(format string, args ...any) {
	p.errs = append(p.errs, fmt.Errorf(format, args...))
}

// act lets do work with package cluster, and runs the clean-up it asks for.
func act(ctx context.Context, do func(*program)) (err error) {
	p := &program{ctx: ctx}
	defer func() {
		if stop := recover(); stop != nil {
			why, ours := stop.(ended)
			if !ours {
				panic(stop)
			}
			err = why.error
		}
	}()
	do(p)
	for _, clean := range p.cleanups {
		clean()
	}
	return errors.Join(p.errs...)
}
