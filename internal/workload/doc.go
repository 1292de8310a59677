// Package workload finds which pods, controllers and claims of a namespace belong
// together: everything that shares a volume, directly or through the pods of one
// controller. It also reports which containers run and what they mount. It reads no
// annotation and runs no command; package unit is the main caller.
package workload
