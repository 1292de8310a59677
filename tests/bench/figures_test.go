package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestFigures(t *testing.T) {
	ms := func(all ...int) (d []time.Duration) {
		for _, n := range all {
			d = append(d, time.Duration(n)*time.Millisecond)
		}
		return d
	}
	all := []series{
		{1, [2][]time.Duration{ms(5300, 5100, 5200), ms(190, 210, 200)}},
		{4, [2][]time.Duration{ms(20000, 20400), ms(15000, 15200)}},
	}
	assert.Equal(t, figures{Runs: 3, Stall: []stall{
		{Volumes: 1, VeleroHooks: 5200, Stillpoint: 200, Ratio: 26},
		{Volumes: 4, VeleroHooks: 20200, Stillpoint: 15100, Ratio: 1.3},
	}}, summarize(3, all))
	assert.Equal(t, `  ratio  volumes  Velero's hooks                Stillpoint                  
  26.0x        1  5200 (5100 to 5300)           200 (190 to 210)            
   1.3x        4  20200 (20000 to 20400)        15100 (15000 to 15200)      
The longest that a write had to wait: median of 3 runs (shortest to longest), ms.
`, table(3, all))
}

func TestHookCommand(t *testing.T) {
	assert.Equal(t, `["fsfreeze","--freeze","/data/data1"]`, hookCommand("--freeze", []string{"/data/data1"}))
	assert.Equal(t, `["sh","-c","fsfreeze --unfreeze /a && fsfreeze --unfreeze /b"]`, hookCommand("--unfreeze", []string{"/a", "/b"}))
}
