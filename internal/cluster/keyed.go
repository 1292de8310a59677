package cluster

import "sync"

// Keyed is a mutex for each key, so that requests about one object do not wait for
// those about another. It keeps the mutex of each key that was used. The zero value is
// ready to use.
type Keyed struct{ mutexes sync.Map }

// Lock locks a key and returns the function that unlocks it.
func (k *Keyed) Lock(key string) (unlock func()) {
	value, _ := k.mutexes.LoadOrStore(key, &sync.Mutex{})
	mutex := value.(*sync.Mutex) //nolint:forcetypeassert // nothing else is stored
	mutex.Lock()
	return mutex.Unlock
}
